"""How long a scheduler takes from its start to its first placement where very much waits, and how much memory."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import redis

from broker.embedded import EmbeddedRedis
from cyxwiz_tasks.protocol import BEATS
from db.embedded import EmbeddedPostgres
from db.migrate import upgrade
from tests.acceptance.processes import ServiceProcess, wait_until
from tests.bench.full_record import fill
from tests.bench.row import Row

NODES, JOBS = 10_000, 1_000_000
_GB = 10**9


def measure(nodes: int = NODES, jobs: int = JOBS) -> Iterator[Row]:
    """Seconds and peak memory of a `cyxwiz scheduler` that finds this record; its nodes beat all the while."""
    folder = Path(tempfile.mkdtemp(prefix="cyxwiz-bench-"))
    folder.chmod(0o711)
    try:
        with EmbeddedPostgres(folder / "postgres") as postgres, EmbeddedRedis(folder / "redis") as broker:
            url = postgres.create_database("cyxwiz")
            upgrade(url)
            dsn = url.replace("+psycopg", "")
            node_ids = fill(dsn, jobs, nodes)
            yield from _start(folder, url, broker.url, node_ids, f"{nodes:,} nodes, {jobs:,} waiting")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, url: str, broker_url: str, node_ids: list[str], note: str) -> Iterator[Row]:
    beating = threading.Event()
    keeper = threading.Thread(target=_beat, args=(broker_url, node_ids, beating), daemon=True)
    keeper.start()
    environment = {"CYXWIZ_HOME": str(folder), "CYXWIZ_DATABASE_URL": url, "CYXWIZ_BROKER_URL": broker_url}
    began = time.monotonic()
    scheduler = ServiceProcess("scheduler", ["scheduler"], environment, folder, prompt="leading")
    try:
        scheduler.ready(300)
        led_seconds = time.monotonic() - began
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as record:
            wait_until(lambda: record.execute("SELECT 1 FROM attempts LIMIT 1").fetchone(), 60, "a first attempt")
        seconds, peak = time.monotonic() - began, _peak_bytes(scheduler.pid)
    finally:
        scheduler.teardown()
        beating.set()
        keeper.join()
    note = f"{note}, 1,000 kinds of work; led after {led_seconds:.1f} s"
    yield Row("start_up_to_first_placement", seconds, "s", 30.0, lower_is_better=True, note=note)
    yield Row("start_up_peak_memory", peak / _GB, "GB", 1.5, lower_is_better=True, note="of the scheduler, until then")


def _beat(broker_url: str, node_ids: list[str], stop: threading.Event) -> None:
    with redis.Redis.from_url(broker_url) as server:
        while not stop.is_set():
            seconds, micros = server.time()
            server.zadd(BEATS, dict.fromkeys(node_ids, seconds + micros / 1e6))
            stop.wait(0.5)


def _peak_bytes(pid: int) -> int:
    """The most memory that a process ever had at once."""
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) * 1024
