"""A module that a node imports ahead, for all jobs."""

import os

from cyxwiz_tasks import job

_IMPORTED_IN = os.getpid()


@job
def who_imported() -> tuple[int, int]:
    """The pid that imported this module, and that of the job."""
    return _IMPORTED_IN, os.getpid()
