"""The job of the side-by-side: nothing but a line in a file outside the system."""

from __future__ import annotations

from cyxwiz_tasks import job
from tests.chaos.executions import note


@job
def nothing(number: int, path: str) -> int:
    note(path, number)
    return number
