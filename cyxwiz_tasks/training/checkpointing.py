"""When the built-in training saves where it is, and how it goes on from there."""

from __future__ import annotations

import time
from typing import Any

from cyxwiz_tasks.errors import CheckpointUnusable
from cyxwiz_tasks.training.artifacts import MetricsLog
from cyxwiz_tasks.training.context import TrainingContext
from cyxwiz_tasks.training.state import TrainingState
from cyxwiz_tasks.training_job import TrainingJob

#: Unless the job says how often: so many seconds apart, and never more of the time than this share.
_EVERY_SECONDS = 60.0
_MOST_OF_THE_TIME = 0.005

#: What a saved state does not depend on; any other field that differs would be silently ignored, or wrong.
_MAY_DIFFER = frozenset(
    {
        *("name", "report_every_seconds", "checkpoint_seconds", "checkpoint_steps", "early_stopping_patience"),
        *("precision", "channels_last", "compile", "deterministic"),
    }
)


class TrainingCheckpoints:
    """The checkpoints of one training. Everything that decides its next step is in them, and its history so far."""

    def __init__(self, job: TrainingJob, ctx: TrainingContext, state: TrainingState, log: MetricsLog) -> None:
        self._job, self._ctx, self._state, self._log = job, ctx, state, log
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._took_seconds = 0.0

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one. Raises CheckpointUnusable where that cannot be right."""
        saved = self._ctx.restore()
        if saved is None:
            return
        if differing := differing_fields(saved["job"], self._job):
            raise CheckpointUnusable(
                f"the job's checkpoint was made with {', '.join(differing)}: submit the changed job as a new one"
            )
        try:
            self._state.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointUnusable(
                f"the job's checkpoint does not fit its model ({str(error).splitlines()[0]}): the model's code has "
                f"changed since, so submit the job as a new one"
            ) from error
        self._log.replace(saved["history"])
        self._saved_step = self._state.step

    def save_if_due(self) -> None:
        """Save if so many steps or seconds have gone by."""
        if self._is_due():
            self.save()

    def save(self) -> None:
        """Save now; where that is not possible, the training goes on without."""
        began = time.monotonic()
        state = self._state.state_dict() | {"job": self._job.model_dump(mode="json"), "history": self._log.history()}
        self._ctx.checkpoint(step=self._state.step, **state)
        self._saved_at = time.monotonic()
        self._took_seconds = self._saved_at - began
        self._saved_step = self._state.step

    def _is_due(self) -> bool:
        steps = self._job.checkpoint_steps
        if steps is not None and self._state.step - self._saved_step >= steps:
            return True
        seconds = self._job.checkpoint_seconds
        if seconds is None:
            if steps is not None:
                return False
            seconds = max(_EVERY_SECONDS, self._took_seconds / _MOST_OF_THE_TIME)
        return time.monotonic() - self._saved_at >= seconds and self._state.step > self._saved_step


def differing_fields(saved: dict[str, Any], job: TrainingJob) -> list[str]:
    """Fields in which the job is not the one that was saved, as `learning_rate=0.1 (now 0.2)`."""
    now = job.model_dump(mode="json")
    # Without a schedule, more epochs or steps are just more of the same.
    free = _MAY_DIFFER | ({"epochs", "max_steps"} if job.schedule == "constant" and not job.warmup else set())
    return [
        f"{name}={saved.get(name)!r} (now {now[name]!r})"
        for name in now
        if name not in free and name in saved and saved[name] != now[name]
    ]
