"""What is said of a job that the kernel killed for its memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from workers.outcomes import ended_without_word


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
