"""Nodes that are frozen past their lease and come back: nothing that they then say may count.

`python -m tests.chaos.zombies --zombies 1000`. In each round a node with many running jobs is frozen, agent and jobs
alike, until its lease is over and its jobs are placed again; then what they wait for is there, and it is thawed: its
jobs end and report at once, each under a token that is not current any more.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import psutil
from rich.console import Console
from sqlalchemy import Engine, text

from cyxwiz_tasks import Client
from db.engine import make_engine
from tests.acceptance.processes import ServiceProcess, wait_until
from tests.bench.bench_stack import bench_stack

SLOTS = 20
USER_CODE = Path(__file__).with_name("user_code")
RESULTS = Path("zombies-results.json")
#: short, so that a thousand zombies take minutes
TIMES = {"CYXWIZ_LEASE_SECONDS": "1.5", "CYXWIZ_SUSPECT_AFTER_SECONDS": "0.7"}
#: a node that is lost in round after round would rightly be put away for longer and longer
UNTIRING = {"CYXWIZ_QUARANTINE_FAULTS": "1000000"}

_LOST = "SELECT count(*) FROM attempts WHERE state = 'lost'"
#: whatever was written under the token of a lost attempt after it was lost
_STALE = """
    SELECT count(*) FROM events AS late JOIN attempts USING (token)
    WHERE attempts.state = 'lost' AND late.seq > (
        SELECT max(seq) FROM events WHERE token = attempts.token AND detail ->> 'attempt_state' = 'lost')"""
_WRONG_WINNER = """
    SELECT count(*) FROM jobs JOIN attempts ON attempts.job_id = jobs.id AND attempts.state = 'completed'
    WHERE token <> current_token"""
_UNFINISHED = "SELECT count(*) FROM jobs WHERE state <> 'completed'"


@click.command()
@click.option("--zombies", default=1000, show_default=True, help="How many attempts come back from the dead.")
def main(zombies: int) -> None:
    console = Console(width=120)
    with _laboratory() as (client, engine, scheduler, nodes, folder):
        rounds = 0
        while _count(engine, _LOST) < zombies:
            rounds += 1
            _round(client, engine, nodes, folder / f"gate{rounds}")
            if rounds % 10 == 0:
                console.print(f"{rounds} rounds, {_count(engine, _LOST)} zombies", style="dim")
        fenced = scheduler.logs().count("event=report_fenced")
        found = {
            "zombies": _count(engine, _LOST),
            "rounds": rounds,
            "reports_fenced": fenced,
            "stale_writes": _count(engine, _STALE),
            "results_of_others": _count(engine, _WRONG_WINNER),
            "unfinished_jobs": _count(engine, _UNFINISHED),
        }
    console.print(json.dumps(found))
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    if fenced == 0:
        console.print("no zombie ever reported: this proves nothing", style="red")
    raise SystemExit(
        bool(found["stale_writes"] or found["results_of_others"] or found["unfinished_jobs"] or not fenced)
    )


def _round(client: Client, engine: Engine, nodes: dict[str, ServiceProcess], gate: Path) -> None:
    import detection_jobs

    jobs = client.submit_many([detection_jobs.waits.s(str(gate)) for _ in range(2 * SLOTS)])
    wait_until(
        lambda: _count(engine, "SELECT count(*) FROM jobs WHERE state = 'running'") == 2 * SLOTS, 60, "all to run"
    )
    before, frozen = _count(engine, _LOST), _tree(nodes["zombie"].process.pid)
    _signal(frozen, signal.SIGSTOP)
    wait_until(lambda: _count(engine, _LOST) == before + SLOTS, 60, "the frozen node's jobs to be lost")
    gate.touch()
    # Those of the living node end, and it gets the lost ones: the zombies come back while others do their work.
    time_is_up = time.monotonic() + 0.5
    wait_until(lambda: time.monotonic() > time_is_up)
    _signal(frozen, signal.SIGCONT)
    for job in jobs:
        job.result(timeout=120)
    wait_until(lambda: all(node["state"] == "up" for node in client.nodes()), 60, "both nodes to be up")


def _tree(pid: int) -> list[psutil.Process]:
    agent = psutil.Process(pid)
    return [agent, *agent.children(recursive=True)]


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def _laboratory() -> Iterator[tuple[Client, Engine, ServiceProcess, dict[str, ServiceProcess], Path]]:
    sys.path.insert(0, str(USER_CODE))
    with bench_stack("--only", "postgres,redis") as client, tempfile.TemporaryDirectory() as folder:
        home = os.environ["CYXWIZ_HOME"]
        url = json.loads((Path(home) / "stack.json").read_text())["database_url"]
        engine = make_engine(url, "zombies")
        environment = TIMES | UNTIRING | {"CYXWIZ_HOME": home, "CYXWIZ_BROKER_URL": client.broker_url}
        scheduler = ServiceProcess(
            "scheduler", ["scheduler"], environment | {"CYXWIZ_DATABASE_URL": url}, Path(folder), "leading"
        )
        nodes = {}
        try:
            scheduler.ready()
            for name in ("zombie", "living"):
                options = ["worker", "--name", name, "--slots", str(SLOTS), "--path", str(USER_CODE)]
                nodes[name] = ServiceProcess(name, options, environment, Path(folder), " ready")
                nodes[name].ready()
            yield client, engine, scheduler, nodes, Path(folder)
        finally:
            for node in nodes.values():
                node.teardown()
            scheduler.teardown()
            engine.dispose()


def _count(engine: Engine, sql: str) -> int:
    with engine.connect() as tx:
        return int(tx.scalar(text(sql)) or 0)


if __name__ == "__main__":
    main()
