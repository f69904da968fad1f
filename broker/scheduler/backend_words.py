"""Last states that others wait for in Celery itself: the next steps of a chain, a chord's body, error callbacks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.app.task import Context

from broker.scheduler.log_lines import line

log = logging.getLogger(__name__)


def speak(app: Celery, words: Iterable[tuple[str, Exception | None, str, dict[str, Any]]]) -> None:
    """Write FAILURE, or REVOKED where there is no error, through Celery's backend, which tells whoever waits."""
    for job_id, error, reason, fields in words:
        request = Context(fields)
        try:
            if error is not None:
                app.backend.mark_as_failure(job_id, error, request=request)
            else:
                app.backend.mark_as_revoked(job_id, reason, request=request)
        except Exception as failure:
            # A callback of the user's that cannot be called must not stop the scheduler; the record has the job's end.
            log.warning(line("callbacks_failed", job=job_id, error=type(failure).__name__))
