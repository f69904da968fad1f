"""The job that a waiting process rehearses. Nobody sends it, and it does nothing."""

from typing import Any

from cyxwiz_tasks.job_task import job


@job
def nothing(ctx: Any) -> None:
    pass
