"""Placements a second end to end on 1,000 nodes: taken from the inbox, placed, committed, published on node queues."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from functools import partial
from pathlib import Path

import psutil
import redis

from cyxwiz_tasks import Client, Resources
from cyxwiz_tasks.protocol.names import BEATS, REPORTS, node_queue, reply_key
from cyxwiz_tasks.protocol.reports import Register
from tests.bench.row import Row
from tests.unit.fleet import capability

NODES, JOBS, SLOTS = 1000, 6000, 8
_QUEUES = "bench.queues"
_PUBLISHED = """
local messages = 0
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[1])) do messages = messages + redis.call('LLEN', queue) end
return messages
"""
DEMANDS = (Resources(), Resources(gpus=1), Resources(gpu_memory="20GB..", shared=True), Resources(cpus=2))


def measure(client: Client) -> Row:
    """The scheduler is halted while the jobs are sent, so that it has the cores for itself afterwards."""
    import lab_jobs

    server = redis.Redis.from_url(client.broker_url)
    beating, beats = threading.Event(), [str(uuid.UUID(int=number + 1)) for number in range(NODES)]
    keeper = threading.Thread(target=_beat, args=(server, beats, beating), daemon=True)
    keeper.start()
    for number, node_id in enumerate(beats):
        _register(server, number, node_id)
    _wait(lambda: len(client.nodes(limit=2 * NODES)) > NODES)
    scheduler = _scheduler_process()
    jobs = [(lab_jobs.add.s(number, 1), {"resources": DEMANDS[number % len(DEMANDS)]}) for number in range(JOBS)]
    # One script, so that looking on takes next to nothing of the two cores.
    server.sadd(_QUEUES, *(node_queue(node_id) for node_id in beats))
    published = partial(server.register_script(_PUBLISHED), keys=[_QUEUES])
    scheduler.send_signal(signal.SIGSTOP)
    client.submit_many(jobs, wait=False)
    began = time.monotonic()
    scheduler.send_signal(signal.SIGCONT)
    _wait(lambda: published() >= JOBS * 0.99, seconds=60)
    rate = published() / (time.monotonic() - began)
    beating.set()
    keeper.join()
    return Row(
        "placements_per_second_end_to_end",
        rate,
        "jobs/s",
        target=2000,
        note=f"{NODES} nodes, {JOBS} jobs of {len(DEMANDS)} shapes, one fsync a batch",
    )


def _register(server: redis.Redis, number: int, node_id: str) -> None:
    declared = capability(*[("Declared 24GB", "24GB", "8.9")] * 4, slots=SLOTS, cpus=64, ram="256GB")
    report = Register(
        node=node_id,
        incarnation=str(uuid.uuid4()),
        name=f"declared-{number}",
        hostname=f"declared-{number}@bench",
        capability=declared,
        reply_to=reply_key(f"bench-{number}"),
    )
    server.lpush(REPORTS, report.model_dump_json())


def _beat(server: redis.Redis, nodes: list[str], stop: threading.Event) -> None:
    while not stop.wait(0.5):
        seconds, micros = server.time()
        server.zadd(BEATS, dict.fromkeys(nodes, seconds + micros / 1e6))


def _scheduler_process() -> psutil.Process:
    import os

    home = os.environ["CYXWIZ_HOME"]
    for process in psutil.process_iter():
        words = process.cmdline()
        if words[-1:] == ["scheduler"] and home == process.environ().get("CYXWIZ_HOME"):
            return process
    raise LookupError(Path(home))


def _wait(condition: object, seconds: float = 60.0) -> None:
    from tests.acceptance.processes import wait_until

    wait_until(condition, seconds)  # type: ignore[arg-type]
