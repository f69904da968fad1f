"""What Redis answers instead of doing as told, and whether it may do so later."""

from __future__ import annotations

from typing import Any

import redis

#: First words of answers that say something of the server and nothing of the command.
_PASSING = (
    *("OOM", "READONLY", "LOADING", "MISCONF", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS"),
    *("NOAUTH", "UNBLOCKED"),
)


def is_refusal(answer: Any) -> bool:
    """Whether an answer of a pipeline is an error."""
    return isinstance(answer, Exception)


def passes(error: Exception) -> bool:
    """Whether the same command may be taken later: the server is away, full, loading, or somebody's replica for now."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.OutOfMemoryError | redis.ReadOnlyError):
        return True
    # redis-py cuts the first word off where it has a class for it, and keeps it where it has none.
    return isinstance(error, redis.ResponseError) and str(error).startswith(_PASSING)
