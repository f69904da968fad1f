"""Celery's result backend for Redis, with chords that outlive what Redis knew of them.

Celery keeps the size of a chord in Redis alone: once Redis is emptied, no part that ends afterwards is the last one.
Here the size travels in the messages of the parts as well, which the record keeps, so whoever counts a part sets it
again. Parts that had ended before are counted again by the scheduler (its duties `Untold`
and `ChordParts`).

Only for a chord whose body is a job: it may be sent once more then, and the scheduler knows a job that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from celery.backends.redis import RedisBackend
from celery.result import GroupResult

from cyxwiz_tasks.protocol.names import HEADER

#: Celery's own name for it, in what it sends of a chord's body with each part
CHORD_SIZE = "chord_size"


class ResultBackend(RedisBackend):  # type: ignore[misc]
    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> Any:
        results = header_result_args[1]
        # A list: a generator must not be used up. What a part that is a group counts for, it does not tell.
        if isinstance(results, list) and _is_job(body) and not any(isinstance(one, GroupResult) for one in results):
            body[CHORD_SIZE] = len(results)
        return super().apply_chord(header_result_args, body, **kwargs)

    def on_chord_part_return(self, request: Any, state: Any, result: Any, *args: Any, **kwargs: Any) -> Any:
        size = request.chord.get(CHORD_SIZE) if isinstance(request.chord, Mapping) else None
        if size and request.group:
            key = self.get_key_for_group(request.group, ".s")
            self.ensure(partial(self.client.set, nx=True, ex=self.chord_expires or None), (key, size))
        return super().on_chord_part_return(request, state, result, *args, **kwargs)


def _is_job(body: Any) -> bool:
    return HEADER in (body.get("options", {}).get("headers") or {})
