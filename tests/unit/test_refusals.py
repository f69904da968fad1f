"""Which answers of Redis pass, and which stay for good."""

from __future__ import annotations

import pytest
import redis

from workers.refusals import is_refusal, passes


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("Connection refused"),
        redis.TimeoutError("Timeout reading from socket"),
        redis.exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
        redis.exceptions.AuthenticationError("NOAUTH Authentication required."),
        redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        redis.ReadOnlyError("You can't write against a read only replica."),
        redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk."),
        redis.ResponseError("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    ],
    ids=lambda error: str(error).split()[0],
)
def test_passing(error):
    assert is_refusal(error)
    assert passes(error)


@pytest.mark.parametrize(
    "error",
    [
        redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        redis.exceptions.NoPermissionError("this user has no permissions to run the 'xadd' command"),
        redis.DataError("Invalid input of type"),
    ],
    ids=lambda error: str(error).split()[0],
)
def test_lasting(error):
    assert is_refusal(error)
    assert not passes(error)


def test_an_answer_is_no_refusal():
    assert not is_refusal(b"OK")
