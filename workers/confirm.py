"""Reports that wait for the scheduler's word: sent again until it comes, which does no harm."""

from __future__ import annotations

import logging
import random
import time
import uuid

import redis
from pydantic import ValidationError

from cyxwiz_tasks import failpoints
from cyxwiz_tasks.protocol.names import REPORTS, reply_key
from cyxwiz_tasks.protocol.reports import Ended, Left, Register, ReportReply
from workers.node import Node

log = logging.getLogger(__name__)

#: no word for so long: the report, or the word, may be lost
_AGAIN_SECONDS = 5
#: what a node that stops still waits for a scheduler
_STOPPING_SECONDS = 5.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 5.0


def confirm(node: Node, ended: Ended) -> ReportReply | None:
    """Tell the scheduler that an attempt is over; returns its word.

    Waits for as long as it takes, whatever Redis answers. None: this node stops, and has no time left; its next agent
    finds the report in the journal.
    """
    failures, give_up_at = 0, None
    while True:
        try:
            reply = ask(node.redis, ended, _AGAIN_SECONDS)
            if reply is not None:
                return reply
            log.warning("job %s: no scheduler has confirmed its end yet", ended.job)
        except redis.RedisError as error:
            # Away, full, read-only, loading, or another password: all of that passes, or a person ends it.
            if failures == 0:
                log.warning("job %s: its end cannot be reported yet (%s)", ended.job, error)
            time.sleep(pause_seconds(failures))
            failures += 1
        if node.stopping:
            give_up_at = give_up_at or time.monotonic() + _STOPPING_SECONDS
            if time.monotonic() >= give_up_at:
                return None


def pause_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row: longer each time, and not the same on every node."""
    longest: float = min(_FIRST_PAUSE_SECONDS * 2 ** min(failures, 10), _LONGEST_PAUSE_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret


def ask(client: redis.Redis, report: Register | Left | Ended, timeout_seconds: float) -> ReportReply | None:
    """Send a report and wait for the scheduler's word; None if it does not come in time. Raises redis' errors."""
    key = reply_key(str(uuid.uuid4()))
    client.lpush(REPORTS, report.model_copy(update={"reply_to": key}).model_dump_json())
    failpoints.hit(f"agent.after_{report.kind}")
    answer = client.brpop([key], timeout=timeout_seconds)
    try:
        return None if answer is None else ReportReply.model_validate_json(answer[1])
    except ValidationError as error:
        log.warning("a scheduler's word cannot be read: %s", error.errors()[0]["msg"])
        return None
