"""What is to blame when a turn fails: the moment, a message, or a server."""

from __future__ import annotations

import traceback
from pathlib import Path

import redis
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cyxwiz_tasks.errors import NotLeader, ServerUnavailable
from db.engine import is_beyond_limits, is_conflict

_FRAMES_SHOWN = 6


def is_momentary(error: Exception) -> bool:
    """Whether the same turn may pass at once: a deadlock, a serialization failure, a lock not had in time.

    A row that is there already, too: memory may not have known what the record does, and is loaded anew.
    """
    return isinstance(error, DBAPIError) and (is_conflict(error) or isinstance(error, IntegrityError))


def is_poison(error: Exception) -> bool:
    """Whether a failed turn is to blame on what it was about, and not on a server or on another leader."""
    if isinstance(error, NotLeader | ServerUnavailable | redis.RedisError | PoolTimeout):
        return False
    if not isinstance(error, DBAPIError):
        return True
    return isinstance(error, DataError | IntegrityError) or is_beyond_limits(error)


def where(error: Exception) -> str:
    """File and line of an error; its text stays out of the log, it may quote a job's data."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-_FRAMES_SHOWN:]))
