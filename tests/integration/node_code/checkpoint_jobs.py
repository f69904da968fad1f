"""Jobs that go on from where another attempt was."""

from __future__ import annotations

from typing import Any

from cyxwiz_tasks import job


@job
def goes_on(ctx: Any) -> int:
    """Returns the step that it began with, and saves one more."""
    saved = ctx.restore()
    step = saved["step"] if saved is not None else 0
    assert ctx.checkpoint(step=step + 1, note="from a node")
    (ctx.artifacts / "step.txt").write_text(str(step))
    return step


@job
def writes_files(ctx: Any) -> None:
    assert ctx.checkpoint(step=1)
    (ctx.artifacts / "weights.txt").write_text("0.5")
