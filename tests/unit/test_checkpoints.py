"""What is saved comes back, and nothing but that: whatever is torn, flipped, missing, full, or written by a zombie."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cyxwiz_tasks.checkpoints.checkpoints import Checkpoints
from cyxwiz_tasks.checkpoints.generations import generations
from cyxwiz_tasks.checkpoints.manifest import MANIFEST, describe
from cyxwiz_tasks.errors import CheckpointUnusable
from cyxwiz_tasks.runtime.context import LocalContext
from tests.chaos.torn_checkpoints import kill_writers


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def checkpoints(root: Path, lines: list[str]) -> Checkpoints:
    return Checkpoints(root, 7, lines.append)


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((30, 30), float(step)), "b": torch.arange(5000) + step}


def save(checkpoints: Checkpoints, *steps: int) -> Path:
    for step in steps:
        made = checkpoints.save(step, {"model": weights(step), "optimizer": {"state": {0: torch.ones(4096) * step}}})
    return made.folder


def loaded_step(checkpoints: Checkpoints) -> int | None:
    """The step of what is loaded, after a look at every value."""
    state = checkpoints.load()
    if state is None:
        return None
    step = state["step"]
    assert all(torch.equal(value, weights(step)[name]) for name, value in state["model"].items())
    assert torch.equal(state["optimizer"]["state"][0], torch.ones(4096) * step)
    return step


def in_child(action) -> int:
    """Run `action` in a fork of this process; its exit status is 0 if it returned."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_everything_that_may_be_saved_comes_back_as_it_was(checkpoints):
    large = torch.randn(1000, 10)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {
        "model": model.state_dict(),
        "half": {"w": torch.randn(3, 3).bfloat16()},
        "turned": {"w": torch.randn(4, 6).t()},
        "slice": large[3],
        "parameter": nn.Parameter(torch.ones(2)),
        "sparse": torch.eye(3).to_sparse(),
        "shape": torch.Size([2, 3]),
        "dtype": torch.float16,
        "numbers": [1, -(2**70), 0.1, float("inf"), True, None, 2j],
        "texts": {"ä": "ö\0", 3: b"\xff", (1, "a"): ()},
        "sets": {1, 2},
        "ordered": OrderedDict(x=1),
        "numpy_number": np.float32(0.5),
        "empty": {},
    }
    made = checkpoints.save(12, state)
    back = checkpoints.load()
    assert back["step"] == 12
    assert set(back) == {"step", *state}
    for name in ("model", "half", "turned"):
        assert all(torch.equal(back[name][key], value) for key, value in state[name].items())
        assert (made.folder / f"{name}.safetensors").exists()
    for name in ("slice", "parameter"):
        assert torch.equal(back[name], state[name])
    assert torch.equal(back["sparse"].to_dense(), torch.eye(3))
    assert back["shape"] == (2, 3)
    for name in ("dtype", "numbers", "texts", "sets", "ordered", "numpy_number", "empty"):
        assert back[name] == state[name]
    assert (made.folder / "trainer.pt").stat().st_size < 20_000


def test_tensors_that_share_memory_still_do(checkpoints):
    tied = torch.ones(5)
    checkpoints.save(1, {"model": {"in": tied, "out": tied}})
    model = checkpoints.load()["model"]
    model["in"][0] = 7
    assert model["out"][0] == 7


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (nn.Linear(2, 2), r"model is a Linear.*state_dict\(\)"),
        ({"inner": [0, object()]}, r"model\['inner'\]\[1\] is a object"),
        (np.ones(3), r"model is a numpy array: give torch.from_numpy"),
        ({frozenset(): 1}, "model has the key frozenset"),
    ],
)
def test_what_cannot_be_saved_is_an_error_that_names_it_and_leaves_nothing(checkpoints, root, value, says):
    with pytest.raises(TypeError, match=says):
        checkpoints.save(1, {"model": value})
    assert not root.exists()
    with pytest.raises(ValueError, match=r"'\.\./x' cannot name"):
        checkpoints.save(1, {"../x": 1})


def test_the_newest_is_loaded_and_two_are_kept(checkpoints, root):
    assert checkpoints.load() is None
    save(checkpoints, 10, 20, 30, 40)
    assert loaded_step(checkpoints) == 40
    assert sorted(path.name for path in (root / "7").iterdir()) == ["000003", "000004"]


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", MANIFEST])
def test_a_file_cut_anywhere_is_never_loaded(checkpoints, lines, name):
    file = save(checkpoints, 1, 2) / name
    content = file.read_bytes()
    for length in [*range(0, len(content), 4096), len(content) - 1]:
        file.write_bytes(content[:length])
        lines.clear()
        assert loaded_step(checkpoints) == 1
        assert "checkpoint 7/2 is not whole" in lines[0]
        assert "resumes from checkpoint 7/1, step 1" in lines[1]
    file.unlink()
    assert loaded_step(checkpoints) == 1
    file.write_bytes(content)
    assert loaded_step(checkpoints) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", MANIFEST])
def test_a_flipped_bit_is_never_loaded(checkpoints, name):
    file = save(checkpoints, 1, 2) / name
    content = file.read_bytes()
    chance = random.Random(0)
    for position in [0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(60))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        # A bit of the manifest may be one that says nothing, such as of a version: then the checkpoint is whole.
        assert loaded_step(checkpoints) in ({1, 2} if name == MANIFEST else {1})


def test_nothing_is_loaded_where_nothing_is_whole(checkpoints, lines):
    for folder in (save(checkpoints, 1), save(checkpoints, 2)):
        (folder / "trainer.pt").write_bytes(b"")
    assert checkpoints.load() is None
    assert len(lines) == 2
    save(checkpoints, 3)
    assert loaded_step(checkpoints) == 3


def test_a_generation_in_the_place_of_another_is_not_taken(checkpoints, root):
    save(checkpoints, 1, 2)
    shutil.copytree(root / "7" / "000001", root / "7" / "000009")
    assert loaded_step(checkpoints) == 2


def test_each_attempt_goes_on_from_older_ones_and_a_zombie_changes_nothing_for_its_successor(root, lines):
    first, second, third = (Checkpoints(root, token, lines.append) for token in (3, 5, 8))
    save(first, 10, 20)
    assert loaded_step(second) == 20
    save(first, 30)  # a zombie by now, and further than its successor, which has saved nothing yet
    assert loaded_step(second) == 30
    save(second, 25)
    assert loaded_step(third) == 25
    assert [found.name for found in generations(root, 8)] == ["5/1", "3/3"]
    save(first, 40, 50, 60)
    assert loaded_step(first) == 60
    assert loaded_step(third) == 25
    save(second, 35)
    assert [found.name for found in generations(root, 8)] == ["5/2", "5/1"]
    assert not (root / "3").exists()
    assert loaded_step(first) is None


def test_what_a_killed_process_left_half_written_goes_with_the_next_save(checkpoints, root):
    save(checkpoints, 1)
    for left in (root / "7" / "000002.partial", root / "4" / "000001.partial"):
        left.mkdir(parents=True)
        (left / "trainer.pt").write_bytes(b"half")
    assert loaded_step(checkpoints) == 1
    folder = save(checkpoints, 2)
    assert folder.name == "000003"
    assert sorted(path.name for path in root.rglob("*") if path.is_dir()) == ["000001", "000003", "7"]


@pytest.mark.parametrize("large", ["model", "trainer"])
def test_a_file_that_reaches_the_limit_of_file_sizes_leaves_the_one_before(checkpoints, large):
    """RLIMIT_FSIZE tears a file in the middle: the kernel writes up to the limit and refuses the rest."""
    save(checkpoints, 1)
    tensor = torch.ones(50_000)

    def hits_the_limit() -> None:
        for limit in (0, 100, 4096, 40 * 1024, 199_999):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            with pytest.raises(OSError, match="File too large") as caught:
                checkpoints.save(2, {large: {"w": tensor} if large == "model" else [tensor]})
            assert caught.value.errno == errno.EFBIG

    assert in_child(hits_the_limit) == 0
    assert loaded_step(checkpoints) == 1
    save(checkpoints, 3)
    assert loaded_step(checkpoints) == 3


def test_a_full_disk_costs_a_checkpoint_and_not_the_job(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("only who may mount can make a small disk")
    try:
        context = LocalContext(artifacts=disk)
        assert context.checkpoint(step=1, w=torch.ones(50_000))
        for large in ({"w": torch.ones(400_000)}, [torch.ones(400_000)]):
            assert not context.checkpoint(step=2, model=large)
            assert "checkpoint of step 2 not saved ([Errno 28]" in capsys.readouterr().out
            assert context.restore()["step"] == 1
        assert context.checkpoint(step=3, w=torch.ones(50_000))
        assert context.restore()["step"] == 3
        assert not list(disk.rglob("*.partial"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_whole_checkpoint_of_another_torch_is_refused_in_words_and_no_object_is_ever_made(checkpoints, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    folder = save(checkpoints, 1)
    (folder / "trainer.pt").write_bytes(pickle.dumps({"step": 1, "evil": Evil()}, protocol=2))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["trainer.pt"] = describe(folder / "trainer.pt").model_dump()
    manifest["versions"]["torch"] = "9.9"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointUnusable, match=r"torch \S+ cannot read what torch 9\.9 wrote .*submit it anew"):
        checkpoints.load()
    assert not (tmp_path / "ran").exists()


def test_killed_at_any_instant_a_whole_checkpoint_is_left(root):
    counts = kill_writers(root, kills=40, seed=1)
    assert counts.kills == 40
    assert counts.torn == 0
    assert counts.loads > 30
    assert counts.in_the_middle > 5


def test_a_job_that_saves_nothing_needs_no_torch(tmp_path):
    code = (
        "import sys; from cyxwiz_tasks.runtime.context import LocalContext; from pathlib import Path\n"
        f"assert LocalContext(artifacts=Path({str(tmp_path)!r})).restore() is None\n"
        "assert 'torch' not in sys.modules and 'safetensors' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
