"""Celery states of running jobs, as commands for the reporter's pipelines.

`update_state` would take two round trips and would block while Redis is away; what is written here is the same.
"""

from __future__ import annotations

from typing import Any

from celery.app.task import Context

from workers.attempt_reports import Command


def state_commands(backend: Any, request: Context, state: str, meta: dict[str, Any]) -> list[Command]:
    """Store a state and tell whoever waits for the result; nothing for a job that ignores its result."""
    if request.ignore_result:
        return []
    stored = backend._get_result_meta(result=meta, state=state, traceback=None, request=request)
    value = backend.encode(stored | {"task_id": request.id})
    key = backend.get_key_for_task(request.id)
    return [("SETEX", key, int(backend.expires), value), ("PUBLISH", key, value)]
