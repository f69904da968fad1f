"""Connections to Redis for what Celery has no command for, and their errors without a password in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from cyxwiz_tasks.errors import ServerUnavailable

#: The longest that one command blocks; less than the socket's own timeout, so that silence never looks like a failure.
BLOCK_SECONDS = 10.0


def connect(url: str) -> redis.Redis:
    """A client with a pool of its own, for any number of threads. Nothing is opened until the first command.

    Commands are repeated for about a second after a lost connection, long enough for a Redis that restarts: whatever a
    client writes is idempotent by its id.
    """
    try:
        return redis.Redis.from_url(
            url,
            # The replies to XREAD differ between the protocols.
            protocol=2,
            socket_timeout=30,
            socket_connect_timeout=5,
            socket_keepalive=True,
            health_check_interval=25,
            client_name="cyxwiz-client",
            retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=1.0), 4),
        )
    except ValueError as error:
        raise ServerUnavailable(f"CYXWIZ_BROKER_URL is no URL of a Redis: {error}") from None


@contextmanager
def reached(url: str) -> Iterator[None]:
    """Turn the errors of an unreachable Redis into ServerUnavailable, which says where it should be."""
    try:
        yield
    except redis.AuthenticationError:
        raise ServerUnavailable(
            f"the Redis at {address(url)} refuses the name or password in CYXWIZ_BROKER_URL"
        ) from None
    except redis.OutOfMemoryError:
        raise ServerUnavailable(
            f"the Redis at {address(url)} is full: give it more memory (maxmemory), and look at what fills it; "
            "nothing was sent"
        ) from None
    except redis.ReadOnlyError:
        raise ServerUnavailable(
            f"the Redis at {address(url)} may not write, it is a replica: set CYXWIZ_BROKER_URL to the primary"
        ) from None
    except redis.ResponseError as error:
        # redis-py has no class for it.
        if not str(error).startswith("MISCONF"):
            raise
        raise ServerUnavailable(
            f"the Redis at {address(url)} takes no writes, because it cannot write to its disk: give that room, look "
            "at its log; nothing was sent"
        ) from None
    except (redis.ConnectionError, redis.TimeoutError, OSError, ValueError) as error:
        # Celery's threads share a connection. One that another thread closes meanwhile is a "closed file" to redis-py.
        if isinstance(error, ValueError) and "closed file" not in str(error):
            raise
        raise ServerUnavailable(
            f"the Redis at {address(url)} does not answer ({type(error).__name__}): start the stack with `cyxwiz up`, "
            "or set CYXWIZ_BROKER_URL to the broker of a running one"
        ) from None


def address(url: str) -> str:
    """Host, port and database of a URL, without name and password."""
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else ""
    except ValueError:
        return "CYXWIZ_BROKER_URL"
    return f"{host}{parts.path}"
