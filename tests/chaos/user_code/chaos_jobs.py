"""The jobs of a chaos run. Each writes what it does into a witness file that no service of ours touches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from cyxwiz_tasks import Resources, TrainingJob, job

#: how long a child outlives its job if nobody ends it
_CHILD_SECONDS = 600
#: who saves does so each time after so many steps
_SAVE_STEPS = 5


def witness(path: str, ctx: Any, step: int | str, **more: Any) -> None:
    """One line in one write, so that lines of many processes never mix."""
    fields = {
        "job": ctx.job_id,
        "attempt": ctx.attempt,
        "rank": ctx.rank,
        "step": step,
        "pid": os.getpid(),
        "monotonic": time.monotonic(),
    }
    line = json.dumps(fields | more) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def _walk(ctx: Any, path: str, steps: int, pause_seconds: float, first: int = 1) -> int:
    for step in range(first, steps + 1):
        if ctx.should_stop:
            witness(path, ctx, "stopped")
            return step - 1
        witness(path, ctx, step)
        ctx.report(step=step, total=steps, loss=1.0 / step)
        time.sleep(pause_seconds)
    return steps


def _walk_and_save(ctx: Any, path: str, steps: int, pause_seconds: float) -> int:
    """Save as it goes, also when asked to stop, and go on from what was saved; of a gang rank 0 saves."""
    made, saved = 0, ctx.restore()
    if saved is not None:
        made = saved["step"]
        witness(path, ctx, "restored", restored=made)
    while made < steps:
        goal = min(made + _SAVE_STEPS, steps)
        reached = _walk(ctx, path, goal, pause_seconds, made + 1)
        if reached > made:
            if ctx.rank == 0:
                # Before it is written: whoever goes on from it finds the line.
                witness(path, ctx, "saving", saved=reached)
            if ctx.checkpoint(step=reached) and ctx.rank == 0:
                witness(path, ctx, "saved", saved=reached)
        made = reached
        if made < goal:
            break
    return made


@job
def noop(ctx: Any, path: str) -> int:
    witness(path, ctx, 1)
    return 1


@job
def walks(ctx: Any, path: str, steps: int, pause_seconds: float) -> int:
    return _walk(ctx, path, steps, pause_seconds)


@job(resources=Resources(gpus=1))
def walks_on_a_gpu(ctx: Any, path: str, steps: int, pause_seconds: float) -> int:
    return _walk(ctx, path, steps, pause_seconds)


@job(resources=Resources(gpus=1))
def saves_on_a_gpu(ctx: Any, path: str, steps: int, pause_seconds: float) -> int:
    """Who gives its place to a more urgent job, or moves for a bigger one."""
    return _walk_and_save(ctx, path, steps, pause_seconds)


@job(resources=Resources(gpus=2))
def walks_on_two_gpus(ctx: Any, path: str, steps: int, pause_seconds: float) -> int:
    """All that a node has: others stand in its way."""
    return _walk(ctx, path, steps, pause_seconds)


@job(resources=Resources(nodes=2, gpus=1))
def walks_together_on_gpus(ctx: Any, path: str, steps: int, pause_seconds: float) -> int:
    return _walk(ctx, path, steps, pause_seconds)


@job(resources=Resources(nodes=2))
def walks_together(ctx: Any, path: str, steps: int, pause_seconds: float) -> int:
    """Each rank makes all steps, side by side with the other."""
    return _walk(ctx, path, steps, pause_seconds)


@job(resources=Resources(nodes=2))
def saves_together(ctx: Any, path: str, steps: int, pause_seconds: float) -> int:
    return _walk_and_save(ctx, path, steps, pause_seconds)


@job(resources=Resources(nodes=2))
def fails_together(ctx: Any, path: str, steps: int, pause_seconds: float) -> int:
    """Rank 1 fails after its first step; rank 0 would go on for all of them."""
    if ctx.rank == 0:
        return _walk(ctx, path, steps, pause_seconds)
    witness(path, ctx, 1)
    raise ValueError("as it was told to")


@job
def has_children(ctx: Any, path: str, mark: str) -> int:
    """Leaves a daemon in a session of its own behind, which whoever runs the job has to end."""
    program = f"import time; time.sleep({_CHILD_SECONDS})"
    child = subprocess.Popen([sys.executable, "-c", program, mark], start_new_session=True)
    witness(path, ctx, "child", child=child.pid, environment=dict(os.environ))
    return _walk(ctx, path, 5, 0.05)


@job
def fails(ctx: Any, path: str) -> None:
    witness(path, ctx, 1)
    raise ValueError("as it was told to")


@job(bind=True, max_retries=6)
def tries_again(self: Any, ctx: Any, path: str, failures: int) -> int:
    witness(path, ctx, 1, retries=self.request.retries)
    if self.request.retries < failures:
        raise self.retry(countdown=0.1)
    return failures


class _Witnessed:
    """The context of a training that writes a line of each optimizer step, and of what it saves and goes on from."""

    def __init__(self, ctx: Any, path: str, pause_seconds: float) -> None:
        self._ctx, self._path, self._pause_seconds = ctx, path, pause_seconds
        self._step = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def report(self, **values: Any) -> None:
        if values["step"] != self._step:  # the end of an epoch is reported once more
            self._step = values["step"]
            witness(self._path, self._ctx, self._step)
            time.sleep(self._pause_seconds)
        self._ctx.report(**values)

    def checkpoint(self, *, step: int, **state: Any) -> bool:
        # Before it is written: whoever goes on from it finds the line.
        witness(self._path, self._ctx, "saving", saved=step)
        return bool(self._ctx.checkpoint(step=step, **state))

    def restore(self) -> dict[str, Any] | None:
        saved: dict[str, Any] | None = self._ctx.restore()
        if saved is not None:
            self._step = saved["step"]
            witness(self._path, self._ctx, "restored", restored=self._step)
        return saved


@job
def trains(ctx: Any, path: str, epochs: int, pause_seconds: float) -> float:
    """Our own training loop; all of them train the same, so whatever happened to them they end with the same loss."""
    from cyxwiz_tasks.training.loop import train  # imports torch: only in the job's own process

    fields = {"model": "mlp", "dataset": "digits", "epochs": epochs, "batch_size": 128, "seed": 1}
    spec = TrainingJob(**fields, checkpoint_steps=4, report_every_seconds=0)
    result = train(spec, _Witnessed(ctx, path, pause_seconds))
    if result["stopped"]:
        witness(path, ctx, "stopped")
        return 0.0
    loss = float(result["metrics"]["loss"])
    witness(path, ctx, "trained", steps=result["metrics"]["steps"], loss=loss)
    return loss


@job
def link(ctx: Any, before: int, path: str) -> int:
    """One link of a chain: gets what the link before it returned."""
    witness(path, ctx, 1)
    return before + 1
