"""Processes that write checkpoints are killed at any instant; whatever is loaded after that must be whole.

`python -m tests.chaos.torn_checkpoints --kills 500` prints how many were killed, how many of them in the middle of a
write, what was loaded, and how many loads were torn: of a step that does not fit its tensors, older than one that had
been reported as saved, or failed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
import safetensors.torch  # noqa: F401 - here and not in each fork
import torch

from cyxwiz_tasks.checkpoints.checkpoints import Checkpoints
from cyxwiz_tasks.checkpoints.generations import PARTIAL

#: Killed no later than this after its first write has begun.
_LONGEST_LIFE_SECONDS = 0.06
#: Attempts that each write under a token of their own.
_KILLS_PER_TOKEN = 8


@dataclass
class Counts:
    kills: int = 0
    in_the_middle: int = 0
    loads: int = 0
    fallbacks: int = 0
    torn: int = 0


def kill_writers(root: Path, kills: int, seed: int) -> Counts:
    """Fork, kill and load, `kills` times. Each process goes on from what the one before it left."""
    counts, chance = Counts(), random.Random(seed)
    for number in range(kills):
        token = 1 + number // _KILLS_PER_TOKEN
        saved = _kill_one(root, token, chance.uniform(0, _LONGEST_LIFE_SECONDS))
        counts.kills += 1
        counts.in_the_middle += any(root.glob(f"*/*{PARTIAL}"))
        lines: list[str] = []
        try:
            state = Checkpoints(root, token, lines.append).load()
        except Exception as error:
            click.echo(f"kill {number}: {error!r}", err=True)
            counts.torn += 1
            continue
        counts.loads += state is not None
        counts.fallbacks += sum("not whole" in line for line in lines)
        counts.torn += not _is_whole(state, saved)
    return counts


def _kill_one(root: Path, token: int, life_seconds: float) -> int:
    """Let a process write for so long; returns the last step that it reported as saved, or that it began with."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        _write_for_ever(root, token, theirs)
    os.close(theirs)
    with os.fdopen(ours, "rb") as reports:
        first = reports.readline()
        if int(first) == 0:
            # On a busy machine no first checkpoint might ever be finished, and nothing would be there to be loaded.
            first = reports.readline()
        time.sleep(life_seconds)
        os.kill(pid, signal.SIGKILL)
        rest = reports.readlines()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return int([first, *rest][-1])


def _write_for_ever(root: Path, token: int, report: int) -> NoReturn:
    try:
        torch.set_num_threads(1)
        checkpoints = Checkpoints(root, token, lambda _: None)
        last = checkpoints.load()
        step = 0 if last is None else last["step"]
        os.write(report, b"%d\n" % step)
        while True:
            step += 1
            weights = {f"layer{number}": torch.full((64, 64), float(step)) for number in range(4)}
            checkpoints.save(step, {"model": weights, "momentum": torch.full((128, 128), float(step))})
            os.write(report, b"%d\n" % step)
    finally:
        os._exit(1)


def _is_whole(state: dict[str, object] | None, saved: int) -> bool:
    if state is None:
        return saved == 0
    step, weights, momentum = state["step"], state["model"], state["momentum"]
    assert isinstance(step, int)
    assert isinstance(weights, dict)
    assert isinstance(momentum, torch.Tensor)
    tensors = [*weights.values(), momentum]
    return step >= saved and len(tensors) == 5 and all(bool((tensor == step).all()) for tensor in tensors)


@click.command(help=__doc__)
@click.option("--kills", default=500, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="cyxwiz-torn-"))
    began = time.monotonic()
    try:
        counts = kill_writers(folder, kills, seed)
    finally:
        shutil.rmtree(folder)
    click.echo(
        f"{counts.kills} kills ({counts.in_the_middle} in the middle of a write), {counts.loads} loads "
        f"({counts.fallbacks} of the generation before), {counts.torn} torn loads, {time.monotonic() - began:.0f} s"
    )
    raise SystemExit(counts.torn > 0)


if __name__ == "__main__":
    main()
