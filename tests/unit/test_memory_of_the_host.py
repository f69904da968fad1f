"""A job that ran out of memory, whose GPU has 24 bytes and whose node 64: which one, what is told, what is learned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from broker.scheduler.judging import _memory
from cyxwiz_tasks.runtime.entry import _raised
from workers.attempt import Attempt
from workers.outcomes import ended_without_word, outcome_of

KILLED = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")


def attempt_that(raised: BaseException | None, *, kernel_killed: bool = False, device: str = "cuda:0") -> Any:
    node = SimpleNamespace(
        name="n1",
        capability=SimpleNamespace(ram_bytes=64),
        gpus_of=lambda assignment: [SimpleNamespace(memory_bytes=24)],
    )
    return SimpleNamespace(
        node=node,
        assignment=SimpleNamespace(gpu_share_bytes=None),
        device=device,
        gpu_fault=None,
        last_frame=None if raised is None else _raised(raised),
        exit_code=-9 if raised is None else 0,
        ran_out_of_memory=kernel_killed,
        stopped=None,
        ended_for=None,
        log=SimpleNamespace(last_lines=lambda: ""),
    )


@pytest.mark.parametrize(
    ("error", "memory", "had_bytes"),
    [
        (MemoryError(), "ram", 64),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "ram", 64),
        (RuntimeError("CUDA error: out of memory"), "gpu_memory", 24),
    ],
)
def test_a_job_on_a_gpu_that_says_so(error: Exception, memory: Any, had_bytes: int) -> None:
    attempt = attempt_that(error)
    outcome = outcome_of(attempt)
    assert (outcome.cause, outcome.memory) == ("out_of_memory", memory)
    assert f"ask for more ({memory} in its resources)" in (outcome.message or "")
    assert Attempt.had_memory_bytes(attempt, memory) == had_bytes
    assert outcome_of(attempt_that(error, device="cpu")).memory == "ram"


def test_a_job_on_a_gpu_that_the_kernel_killed_is_told_to_ask_for_ram() -> None:
    outcome = ended_without_word(attempt_that(None, kernel_killed=True))
    assert (outcome.cause, outcome.memory) == ("out_of_memory", "ram")
    assert "ask for more (ram in its resources)" in (outcome.message or "")


def test_a_process_of_the_job_that_the_kernel_killed() -> None:
    outcome = outcome_of(attempt_that(KILLED, kernel_killed=True))
    assert (outcome.cause, outcome.memory, outcome.exception) == ("out_of_memory", "ram", "builtins.RuntimeError")
    said = (
        "a process of the job on node n1 ran out of memory (DataLoader worker (pid 4711) is killed by signal: Killed. )"
    )
    assert outcome.message == f"{said}: ask for more (ram in its resources) or use a smaller batch"
    assert outcome_of(attempt_that(KILLED)).cause == "error"
    assert outcome_of(attempt_that(ValueError("no"), kernel_killed=True)).cause == "error"


@pytest.mark.parametrize(
    ("memory", "told_bytes", "learned"),
    [
        ("ram", 64, ("ram", 64)),
        ("ram", None, ("ram", 64)),
        ("gpu_memory", 12, ("gpu_memory", 12)),
        (None, None, ("gpu_memory", 24)),
    ],
)
def test_the_scheduler_takes_the_nodes_word(memory: Any, told_bytes: int | None, learned: tuple[str, int]) -> None:
    report: Any = SimpleNamespace(memory=memory, had_memory_bytes=told_bytes)
    node: Any = SimpleNamespace(capability=SimpleNamespace(ram_bytes=64), gpu_memory_at=lambda gpus: [24])
    live: Any = SimpleNamespace(gpus=(0,))
    assert _memory(report, live, node) == learned
