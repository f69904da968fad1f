"""Reports that wait for the scheduler's word: sent again until it comes, which does no harm."""

from __future__ import annotations

import logging
import random
import time
import uuid

import redis

from cyxwiz_tasks import failpoints
from cyxwiz_tasks.protocol import REPORTS, Ended, Left, Register, ReportReply, reply_key
from workers.node import Node

log = logging.getLogger(__name__)

#: no word for so long: the report, or the word, may be lost
_AGAIN_SECONDS = 5
#: what a node that stops still waits for a scheduler
_STOPPING_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 5.0


def confirm(node: Node, ended: Ended) -> bool:
    """Tell the scheduler that an attempt is over; returns whether it counts, and is the last word on its job.

    Waits for as long as it takes; a node that stops gives up after some seconds, and the attempt's lease decides.
    """
    failures, give_up_at = 0, None
    while True:
        try:
            reply = ask(node.redis, ended, _AGAIN_SECONDS)
            if reply is not None:
                return reply.committed and reply.final
            log.warning("job %s: no scheduler has confirmed its end yet", ended.job)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if failures == 0:
                log.warning("job %s: its end cannot be reported yet (%s)", ended.job, error)
            pause_seconds = min(0.05 * 2**failures, _LONGEST_PAUSE_SECONDS)
            time.sleep(pause_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the nodes
            failures = min(failures + 1, 10)
        if node.stopping:
            give_up_at = give_up_at or time.monotonic() + _STOPPING_SECONDS
            if time.monotonic() >= give_up_at:
                return False


def ask(client: redis.Redis, report: Register | Left | Ended, timeout_seconds: float) -> ReportReply | None:
    """Send a report and wait for the scheduler's word; None if it does not come in time. Raises redis' errors."""
    key = reply_key(str(uuid.uuid4()))
    client.lpush(REPORTS, report.model_copy(update={"reply_to": key}).model_dump_json())
    failpoints.hit(f"agent.after_{report.kind}")
    answer = client.brpop([key], timeout=timeout_seconds)
    return None if answer is None else ReportReply.model_validate_json(answer[1])
