"""A job on a GPU that ran out of the host's memory: by its own word, or killed by the kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from broker.scheduler.judging import _memory
from workers.outcomes import ended_without_word, out_of_memory


def test_memory_error_of_a_job_on_a_gpu_is_the_hosts() -> None:
    bases = ["builtins.MemoryError", "builtins.Exception"]
    report: Any = SimpleNamespace(exit_code=0, exception_bases=tuple(bases), had_memory_bytes=24)
    node: Any = SimpleNamespace(capability=SimpleNamespace(ram_bytes=64), gpu_memory_at=lambda gpus: [24])
    live: Any = SimpleNamespace(gpus=(0,))
    assert _memory(report, live, node) == ("ram", 64)
    frame = {"kind": "raised", "text": "", "bases": bases, "type": "MemoryError", "module": "builtins"}
    attempt: Any = SimpleNamespace(last_frame=frame | {"args": "[]", "traceback": ""}, device="cuda:0")
    assert "ask for more (ram in its resources)" in (out_of_memory(attempt).message or "")


def test_a_job_on_a_gpu_that_the_kernel_killed_is_told_to_ask_for_ram() -> None:
    attempt: Any = SimpleNamespace(
        exit_code=-9,
        ran_out_of_memory=True,
        last_frame=None,
        device="cuda:0",
        node=SimpleNamespace(name="n1"),
        log=SimpleNamespace(last_lines=lambda: ""),
    )
    outcome = ended_without_word(attempt)
    assert outcome.cause == "out_of_memory"
    assert "ask for more (ram in its resources)" in (outcome.message or "")
