"""Celery states of running jobs, as commands for the reporter's pipelines.

`update_state` would take two round trips and would block while Redis is away; what is written here is the same.
"""

from __future__ import annotations

from typing import Any

from celery.app.task import Context

from workers.attempt_reports import Command

# A node that was frozen, or cut off, may tell of an attempt whose job has ended elsewhere meanwhile. Who waits for the
# result would then wait for ever, so a last word stays: Celery's own backend looks for one, too, but not in one step.
_UNLESS_ENDED = """
local status = string.match(redis.call('GET', KEYS[1]) or '', '"status": "(%u+)"')
if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then return 0 end
redis.call('SETEX', KEYS[1], ARGV[1], ARGV[2])
redis.call('PUBLISH', KEYS[1], ARGV[2])
return 1
"""


def state_commands(backend: Any, request: Context, state: str, meta: dict[str, Any]) -> list[Command]:
    """Store a state and tell whoever waits for the result; nothing for a job that ignores its result."""
    if request.ignore_result:
        return []
    stored = backend._get_result_meta(result=meta, state=state, traceback=None, request=request)
    value = backend.encode(stored | {"task_id": request.id})
    return [("EVAL", _UNLESS_ENDED, 1, backend.get_key_for_task(request.id), int(backend.expires), value)]
