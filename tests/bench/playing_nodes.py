"""Nodes that play their jobs: `python -m tests.bench.playing_nodes URL < names` starts each and ends it a second later.

It hears of a placement as a client does, by what is announced, and notes when. On SIGTERM it prints these moments, by
job, as JSON: CLOCK_MONOTONIC is one clock for all processes of a machine. How many there are stands in Redis, from
the moment on at which it hears.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import deque
from typing import Any

import redis

from cyxwiz_tasks.protocol.headers import Assignment
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, REPORTS, node_queue, reply_key
from cyxwiz_tasks.protocol.reports import Ended, Started

JOB_SECONDS = 1.0
#: of how many jobs it has heard
HEARD_KEY = "cyxwiz-bench.heard"
_PREFIX = "celery-task-meta-"
_LOOK_SECONDS = 0.02


def main() -> None:
    """Play until SIGTERM. Reads a JSON object from stdin: the nodes' ids by their names."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    ids: dict[str, str] = json.load(sys.stdin)
    client = redis.Redis.from_url(sys.argv[1])
    heard = client.pubsub()
    heard.psubscribe(f"{_PREFIX}*")
    heard.get_message(timeout=10)  # its confirmation
    client.set(HEARD_KEY, 0)
    moments: dict[str, float] = {}
    at_work: deque[tuple[float, Assignment]] = deque()
    while not stopped:
        placed: list[str] = []
        message = heard.get_message(timeout=_LOOK_SECONDS)
        while message is not None:
            told = json.loads(message["data"])
            if told["status"] == "ASSIGNED":
                moments[told["task_id"]] = time.monotonic()
                placed.append(ids[told["result"]["node"]])
            message = heard.get_message(timeout=0)
        _play(client, placed, at_work, len(moments))
    json.dump(moments, sys.stdout)


def _play(client: redis.Redis, placed: list[str], at_work: deque[tuple[float, Assignment]], heard: int) -> None:
    pipe = client.pipeline(transaction=False)
    for node_id in placed:
        pipe.rpop(node_queue(node_id))
    pipe.set(HEARD_KEY, heard)
    # One that was published again after it was taken is announced once, and may be found twice, or not at all.
    taken = [_assignment(raw) for raw in pipe.execute()[:-1] if raw is not None] if placed else []
    now = time.monotonic()
    at_work.extend((now + JOB_SECONDS, assignment) for assignment in taken)
    reports = [Started(**_whose(one), pid=4711, device="cpu").model_dump_json() for one in taken]
    while at_work and at_work[0][0] <= now:
        one = at_work.popleft()[1]
        ended = Ended(**_whose(one), outcome="completed", seconds=JOB_SECONDS, reply_to=reply_key(one.job))
        reports.append(ended.model_dump_json())
    if reports:
        client.lpush(REPORTS, *reports)


def _assignment(raw: bytes) -> Assignment:
    return Assignment.model_validate(json.loads(raw)["headers"][ASSIGNMENT_HEADER])


def _whose(one: Assignment) -> dict[str, Any]:
    return {
        "node": one.node,
        "incarnation": one.incarnation,
        "job": one.job,
        "attempt": one.attempt,
        "token": one.token,
    }


if __name__ == "__main__":
    main()
