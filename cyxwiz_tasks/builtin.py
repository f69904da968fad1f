"""The tasks that come with this project. Their messages name no entry: every node has them."""

from __future__ import annotations

from typing import Any

from cyxwiz_tasks.job_task import JobTask, job
from cyxwiz_tasks.protocol.names import TRAIN_TASK
from cyxwiz_tasks.training_job import TrainingJob


@job(name=TRAIN_TASK)
def train(ctx: Any, spec: dict[str, Any]) -> Any:
    """Train what `spec`, the fields of a TrainingJob, describes. Returns the TrainingResult as JSON.

    Raises InvalidJob, DataError, TrainingDiverged.
    """
    from cyxwiz_tasks.training.loop import train as run  # imports torch: only in the job's own process

    return run(TrainingJob(**spec), ctx)


#: What a job's process runs for a message without an entry.
TASKS: dict[str, JobTask] = {TRAIN_TASK: train}
