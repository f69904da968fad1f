"""What a user is told of a Redis that does not do as it is asked."""

from __future__ import annotations

import pytest
import redis

from cyxwiz_tasks.broker_connection import reached
from cyxwiz_tasks.errors import ServerUnavailable


def test_a_redis_whose_disk_is_full_is_said_so():
    refused = "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk."
    with pytest.raises(ServerUnavailable, match=r"Redis at h:1/0 .* disk"), reached("redis://:secret@h:1/0"):
        raise redis.ResponseError(refused)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"), reached("redis://h:1/0"):
        raise redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
