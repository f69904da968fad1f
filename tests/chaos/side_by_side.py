"""The same no-op jobs and the same SIGKILLs of workers, on plain Celery and on ours: what is lost, what doubled.

`python -m tests.chaos.side_by_side --jobs 20000 --kills 200`. Each round submits some jobs to two workers and, after a
random number of executions, kills one of them with SIGKILL and starts it again. In the end each side has as long as it
takes: until nothing has moved for a minute.

Lost: no outcome where the side keeps its outcomes (Celery's result backend; our record, and AsyncResult beside it).
Recorded twice: a job with more than one outcome in the record. Ran more than once: lines in a file outside both; that a
task runs again after a kill is what "at least once" means, so it is shown and not judged.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click
import redis
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text

from cyxwiz_tasks import Client
from db.engine import make_engine
from tests.acceptance.processes import ServiceProcess, wait_until
from tests.bench.bench_stack import ROOT, bench_stack
from tests.chaos import executions, plain_celery

WORKERS, SLOTS = 2, 2
#: nothing has moved for so long: nothing will any more. Celery needs its visibility timeout and a scan for that.
STALLED_SECONDS = 60.0
USER_CODE = Path(__file__).with_name("user_code")
RESULTS = Path("side-by-side-results.json")


@dataclass
class Side:
    """One of the two systems: how to start a worker, submit jobs and count outcomes."""

    name: str
    witness: Path
    start_worker: Callable[[int], subprocess.Popen[bytes]]
    is_ready: Callable[[int], bool]
    submit: Callable[[range], None]
    count_outcomes: Callable[[], int]
    count_doubled: Callable[[], int]


@dataclass
class Row:
    name: str
    jobs: int
    kills: int
    lost: int
    recorded_twice: int
    ran_more_than_once: int
    seconds: float


@click.command()
@click.option("--jobs", default=20_000, show_default=True)
@click.option("--kills", default=200, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--only", type=click.Choice(["plain", "ours"]), help="One side alone.")
def main(jobs: int, kills: int, seed: int, only: str | None) -> None:
    console = Console(width=140)
    rows = []
    for name, side in (("plain", _plain_side), ("ours", _our_side)):
        if only in (None, name):
            with side() as made:
                rows.append(measure(made, jobs, kills, random.Random(seed), console))
    console.print(_table(rows))
    RESULTS.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n")
    ours = [row for row in rows if row.name == "CyxWiz Tasks"]
    raise SystemExit(any(row.lost or row.recorded_twice for row in ours))


def measure(side: Side, jobs: int, kills: int, chance: random.Random, console: Console) -> Row:
    """Run one side to its end."""
    began = time.monotonic()
    workers = [side.start_worker(number) for number in range(WORKERS)]
    bounds = [jobs * number // max(1, kills) for number in range(max(1, kills) + 1)]
    wait_until(lambda: all(side.is_ready(number) for number in range(WORKERS)), 60, f"workers of {side.name}")
    for number, (first, last) in enumerate(pairwise(bounds)):
        side.submit(range(first, last))
        if number < kills:
            _wait_for_executions(side, executions.count(side.witness) + chance.randint(1, last - first))
            _kill_one(side, workers, number % WORKERS)
        if number % 20 == 19:
            console.print(f"{side.name}: {number + 1} kills, {executions.count(side.witness)} executions", style="dim")
    _settle(side, jobs)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait(60)
    ran = executions.by_number(side.witness)
    return Row(
        side.name,
        jobs,
        kills,
        lost=jobs - side.count_outcomes(),
        recorded_twice=side.count_doubled(),
        ran_more_than_once=sum(times > 1 for times in ran.values()),
        seconds=round(time.monotonic() - began, 1),
    )


def _kill_one(side: Side, workers: list[subprocess.Popen[bytes]], index: int) -> None:
    """A worker that has just been started is let come up first: killing what does nothing yet proves nothing."""
    wait_until(lambda: side.is_ready(index), 60, f"worker {index} of {side.name}")
    workers[index].send_signal(signal.SIGKILL)
    workers[index].wait()
    workers[index] = side.start_worker(index)


def _wait_for_executions(side: Side, count: int) -> None:
    """Until there were so many, or nothing has run for a while (what is left was lost, or waits for its time-out)."""
    moved_at, seen = time.monotonic(), -1
    while (now := executions.count(side.witness)) < count:
        if now != seen:
            moved_at, seen = time.monotonic(), now
        if time.monotonic() - moved_at > 2 * plain_celery.VISIBILITY_SECONDS:
            return
        time.sleep(0.01)


def _settle(side: Side, jobs: int) -> None:
    moved_at, seen = time.monotonic(), (-1, -1)
    while (now := (side.count_outcomes(), executions.count(side.witness)))[0] < jobs:
        if now != seen:
            moved_at, seen = time.monotonic(), now
        if time.monotonic() - moved_at > STALLED_SECONDS:
            return
        time.sleep(0.25)


@contextmanager
def _plain_side() -> Iterator[Side]:
    with bench_stack("--only", "redis") as client, tempfile.TemporaryDirectory() as folder:
        witness = Path(folder) / "witness"
        server = redis.Redis.from_url(client.broker_url)
        app = plain_celery.make_app(client.broker_url)
        logs = [Path(folder) / f"worker{number}.log" for number in range(WORKERS)]

        def start(number: int) -> subprocess.Popen[bytes]:
            with open(logs[number], "wb") as log:
                return subprocess.Popen(
                    [sys.executable, "-m", "celery", "-A", "tests.chaos.plain_celery", "worker", "-c", str(SLOTS)]
                    + ["-Q", "plain", "-n", f"plain{number}@localhost", "-l", "INFO"],
                    env=os.environ | {"PLAIN_BROKER_URL": client.broker_url},
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                )

        def submit(numbers: range) -> None:
            for number in numbers:
                app.send_task("plain.nothing", (number, str(witness)), task_id=f"plain-{number}", queue="plain")

        yield Side(
            "plain Celery 5.7, late ack",
            witness,
            start,
            lambda number: b" ready." in logs[number].read_bytes(),
            submit,
            lambda: sum(1 for _ in server.scan_iter("celery-task-meta-plain-*", count=5000)),
            lambda: 0,
        )


@contextmanager
def _our_side() -> Iterator[Side]:
    sys.path.insert(0, str(USER_CODE))
    import side_jobs

    with bench_stack("--only", "postgres,redis,scheduler") as client, tempfile.TemporaryDirectory() as folder:
        witness = Path(folder) / "witness"
        home = Path(os.environ["CYXWIZ_HOME"])
        engine = make_engine(json.loads((home / "stack.json").read_text())["database_url"], "side-by-side")
        services: dict[int, ServiceProcess] = {}

        def start(number: int) -> subprocess.Popen[bytes]:
            if number in services:
                services[number].start()
            else:
                options = ["worker", "--name", f"node{number}", "--slots", str(SLOTS), "--path", str(USER_CODE)]
                environment = {"CYXWIZ_HOME": str(home), "PYTHONPATH": str(ROOT)}
                services[number] = ServiceProcess(f"node{number}", options, environment, Path(folder), " ready")
            return services[number].process

        try:
            yield Side(
                "CyxWiz Tasks",
                witness,
                start,
                lambda number: " ready" in services[number].new_logs(),
                lambda numbers: _submit(client, [side_jobs.nothing.s(number, str(witness)) for number in numbers]),
                lambda: _count(engine, "SELECT count(*) FROM jobs WHERE state = 'completed'"),
                lambda: _count(engine, _DOUBLED),
            )
        finally:
            for service in services.values():
                service.teardown()
            engine.dispose()


_DOUBLED = """
    SELECT count(*) FROM (SELECT job_id FROM events WHERE to_state IN ('completed', 'failed', 'cancelled')
        GROUP BY job_id HAVING count(*) > 1) AS doubled"""


def _submit(client: Client, signatures: list[object]) -> None:
    client.submit_many(signatures)  # type: ignore[arg-type]


def _count(engine: Engine, sql: str) -> int:
    with engine.connect() as tx:
        return int(tx.scalar(text(sql)) or 0)


def _table(rows: list[Row]) -> Table:
    table = Table(title="the same jobs and the same kills")
    for column in ("system", "jobs", "SIGKILLs", "lost", "recorded twice", "ran more than once", "seconds"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for row in rows:
        recorded = "not kept" if row.name.startswith("plain") else str(row.recorded_twice)
        table.add_row(
            row.name,
            str(row.jobs),
            str(row.kills),
            str(row.lost),
            recorded,
            str(row.ran_more_than_once),
            f"{row.seconds}",
        )
    return table


if __name__ == "__main__":
    main()
