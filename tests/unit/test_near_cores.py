"""Jobs near their GPUs: what the kernel says, when it matters, and that every thread moves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from workers import gpus
from workers.gpus import FakeGpus, NvmlGpus
from workers.near_cores import chosen, cores_near, keep_on
from workers.share import Share, SharedGpus

LEFT, RIGHT = frozenset({0, 1, 4, 5}), frozenset({2, 3, 6, 7})
ALL = LEFT | RIGHT


@pytest.fixture
def pci(tmp_path: Path) -> Path:
    """A machine with a GPU on either side, one of which nobody knows the side, and one that says nonsense."""
    for address, cores in (("0000:41:00.0", "0-1,4-5\n"), ("0001:c1:00.0", "2-3,6-7"), ("0000:02:00.0", "?")):
        (tmp_path / address).mkdir()
        (tmp_path / address / "local_cpulist").write_text(cores)
    return tmp_path


def test_what_the_kernel_says_of_a_device(pci: Path) -> None:
    assert cores_near("0000:41:00.0", pci) == LEFT
    assert cores_near("0000:02:00.0", pci) == cores_near("0000:03:00.0", pci) == frozenset()


@pytest.mark.parametrize(
    ("cpus", "near", "allowed", "node_cores", "cores"),
    [
        (2, LEFT, ALL, 8, LEFT),
        (4, RIGHT, ALL, 8, RIGHT),
        # it asks for none, for more than there are on that side, or both sides are near
        (0, LEFT, ALL, 8, frozenset()),
        (5, LEFT, ALL, 8, frozenset()),
        (2, ALL, ALL, 8, frozenset()),
        # one side only, nothing known, and a node that has not all cores of the machine
        (2, LEFT, LEFT, 4, frozenset()),
        (2, frozenset(), ALL, 8, frozenset()),
        (2, LEFT, ALL, 4, frozenset()),
        # a cpuset that leaves out some of the near ones
        (2, LEFT, frozenset({0, 1, 2}), 3, frozenset({0, 1})),
    ],
)
def test_when_a_job_is_kept_on_one_side(
    cpus: int, near: frozenset[int], allowed: frozenset[int], node_cores: int, cores: frozenset[int]
) -> None:
    assert chosen(cpus, near, allowed, node_cores) == cores


def test_the_side_of_gpus_is_told_by_their_pci_addresses(pci: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {0: (0, 0x41, 0), 1: (1, 0xC1, 0), 2: (0, 3, 0)}

    def pci_info(index: int) -> SimpleNamespace:
        domain, bus, device = addresses[index]
        return SimpleNamespace(domain=domain, bus=bus, device=device)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEccErrors", lambda *_: 0)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPciInfo", pci_info)
    monkeypatch.setattr(gpus, "cores_near", lambda address: cores_near(address, pci))
    provider = SharedGpus(NvmlGpus(), Share())
    assert provider.near_cores((0,)) == LEFT
    assert provider.near_cores((1,)) == RIGHT
    assert provider.near_cores((0, 1)) == ALL
    # of the third nothing is known, so nothing is known of it and another
    assert provider.near_cores((0, 2)) == provider.near_cores(()) == frozenset()
    assert FakeGpus.parse("1x24GB:8.9").near_cores((0,)) == frozenset()


@pytest.fixture
def threads() -> Iterator[subprocess.Popen[bytes]]:
    """A process with three threads."""
    program = (
        "import sys, threading, time\n"
        "for _ in range(2): threading.Thread(target=sys.stdin.read, daemon=True).start()\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with process:
        yield process
        process.kill()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="macOS has no affinity")
def test_all_threads_of_a_process_move(threads: subprocess.Popen[bytes]) -> None:
    core = frozenset({min(os.sched_getaffinity(0))})
    keep_on(threads.pid, core)
    found = [int(thread) for thread in os.listdir(f"/proc/{threads.pid}/task")]
    assert len(found) == 3
    assert {frozenset(os.sched_getaffinity(thread)) for thread in found} == {core}
    assert os.sched_getaffinity(0) != core or os.cpu_count() == 1


def test_a_process_that_is_gone_or_cores_that_are_not_there_cost_a_line(caplog: pytest.LogCaptureFixture) -> None:
    keep_on(2**22 + 1, frozenset({0}))
    keep_on(os.getpid(), frozenset({4095}))
    assert [record.getMessage().partition(":")[0].split(" ", 2)[2] for record in caplog.records] == (
        ["is not kept near its GPUs"] * 2
    )
