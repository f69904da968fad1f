"""How soon each kind of death is noticed: distributions over many injections on a real stack.

`python -m tests.chaos.detection --injections 50`, or `--only killed_worker`. Both ends of an interval are read from one
machine's clock: the moment of the signal here, the moment of the event in the record there.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text

from cyxwiz_tasks import Client
from db.engine import make_engine
from tests.acceptance.processes import ServiceProcess, wait_until
from tests.bench.bench_stack import bench_stack

USER_CODE = Path(__file__).with_name("user_code")
RESULTS = Path("detection-results.json")
GOALS_SECONDS = {
    "killed_job_process": 0.5,
    "killed_worker": 5.0,
    "silent_node": 1.5,
    "killed_leader": 3.0,
    "cancel": 5.0,
}


@dataclass
class Lab:
    """Two schedulers and two nodes of our own, beside the servers of a stack."""

    client: Client
    engine: Engine
    folder: Path
    database_url: str
    services: dict[str, ServiceProcess] = field(default_factory=dict)

    def start(self, name: str, *arguments: str, ready: str) -> ServiceProcess:
        environment = {"CYXWIZ_HOME": os.environ["CYXWIZ_HOME"], "CYXWIZ_BROKER_URL": self.client.broker_url}
        if arguments[0] == "scheduler":
            environment |= {"CYXWIZ_DATABASE_URL": self.database_url}
        self.services[name] = ServiceProcess(name, list(arguments), environment, self.folder, ready)
        return self.services[name]

    def start_again(self, name: str) -> None:
        self.services[name].start()
        self.services[name].ready()

    def value(self, sql: str, **values: object) -> float | None:
        with self.engine.connect() as tx:
            found = tx.scalar(text(sql), values)
        return None if found is None else float(found)

    def when(self, sql: str, seconds: float = 60.0, **values: object) -> float:
        """The Unix time that the query finds, once it finds one."""
        return float(wait_until(lambda: self.value(sql, **values), seconds, sql))

    def node_of(self, job_id: str) -> str:
        return str(wait_until(lambda: self.client.job(job_id)["node"], 30))

    def started(self, path: Path) -> list[int]:
        """The pids that a job wrote."""
        wait_until(path.exists, 30, f"{path} of a job")
        return [int(pid) for pid in path.read_text().split()]


_EVENT = "SELECT extract(epoch FROM min(at)) FROM events WHERE "


def killed_job_process(lab: Lab, number: int) -> float:
    """SIGKILL of a job's process, to the end of its attempt in the record."""
    import detection_jobs

    path = lab.folder / f"job{number}"
    handle = detection_jobs.sleeps.submit(str(path))
    [pid] = lab.started(path)
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    return lab.when(_EVENT + "job_id = CAST(:id AS uuid) AND cause = 'crashed'", id=handle.id) - at


def killed_worker(lab: Lab, number: int) -> float:
    """SIGKILL of a node's agent, to the next placement of what ran there; nobody starts it again before that."""
    import detection_jobs

    path = lab.folder / f"worker{number}"
    handle = detection_jobs.sleeps.submit(str(path), 0.5)
    lab.started(path)
    node = lab.node_of(handle.id)
    at = time.time()
    lab.services[node].kill()
    placed = lab.when(_EVENT + "job_id = CAST(:id AS uuid) AND to_state = 'assigned' AND attempt = 2", id=handle.id)
    handle.result(timeout=60)
    lab.start_again(node)
    _until_up(lab)
    return placed - at


def silent_node(lab: Lab, number: int) -> float:
    """SIGSTOP of a node's agent, to its being suspect."""
    name = f"node{number % 2}"
    node_id = next(node["id"] for node in lab.client.nodes() if node["name"] == name)
    before = lab.value("SELECT coalesce(max(seq), 0) FROM events")
    at = time.time()
    lab.services[name].process.send_signal(signal.SIGSTOP)
    sql = _EVENT + "node_id = CAST(:id AS uuid) AND job_id IS NULL AND to_state = 'suspect' AND seq > :before"
    suspect = lab.when(sql, id=node_id, before=before)
    lab.services[name].process.send_signal(signal.SIGCONT)
    _until_up(lab)
    return suspect - at


def killed_leader(lab: Lab, number: int) -> float:
    """SIGKILL of the leading scheduler, to the placement of a job by the next one."""
    import detection_jobs

    holder = str(lab.client.status()["leader"]["holder"])
    pid = int(holder.rpartition(":")[2])
    [name] = [name for name, service in lab.services.items() if service.process.pid == pid]
    at = time.time()
    lab.services[name].kill()
    handle = detection_jobs.placed.delay()
    placed = lab.when(_EVENT + "job_id = CAST(:id AS uuid) AND to_state = 'assigned'", id=handle.id)
    handle.get(timeout=60)
    lab.services[name].start()
    wait_until(lambda: "standing_by" in lab.services[name].new_logs(), 30)
    return placed - at


def cancel(lab: Lab, number: int) -> float:
    """A cancel, to the last process of a job that ignores SIGTERM and has a child in a session of its own."""
    import detection_jobs

    path = lab.folder / f"clings{number}"
    handle = detection_jobs.clings.submit(str(path))
    pids = lab.started(path)
    at = time.time()
    handle.cancel()
    wait_until(lambda: not any(_lives(pid) for pid in pids), 30, f"the end of {pids}")
    return time.time() - at


INJECTIONS: dict[str, Callable[[Lab, int], float]] = {
    "killed_job_process": killed_job_process,
    "killed_worker": killed_worker,
    "silent_node": silent_node,
    "killed_leader": killed_leader,
    "cancel": cancel,
}


@click.command()
@click.option("--injections", default=50, show_default=True)
@click.option("--only", type=click.Choice(list(INJECTIONS)))
def main(injections: int, only: str | None) -> None:
    console = Console(width=120)
    rows = []
    with _laboratory() as lab:
        for name, inject in INJECTIONS.items():
            if only in (None, name):
                console.print(f"{name}: {injections} times ...", style="dim")
                found = sorted(inject(lab, number) for number in range(injections))
                rows.append(_row(name, found))
    console.print(_table(rows))
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    raise SystemExit(not all(row["holds"] for row in rows))


@contextmanager
def _laboratory() -> Iterator[Lab]:
    sys.path.insert(0, str(USER_CODE))
    with bench_stack("--only", "postgres,redis") as client, tempfile.TemporaryDirectory() as folder:
        url = json.loads((Path(os.environ["CYXWIZ_HOME"]) / "stack.json").read_text())["database_url"]
        engine = make_engine(url, "detection")
        lab = Lab(client, engine, Path(folder), url)
        try:
            lab.start("scheduler0", "scheduler", ready="leading").ready()
            lab.start("scheduler1", "scheduler", ready="standing_by").ready()
            for number in range(2):
                options = ("worker", "--name", f"node{number}", "--slots", "2", "--path", str(USER_CODE))
                lab.start(f"node{number}", *options, ready=" ready").ready()
            yield lab
        finally:
            for service in reversed(lab.services.values()):
                service.teardown()
            engine.dispose()


def _until_up(lab: Lab) -> None:
    wait_until(lambda: all(node["state"] == "up" for node in lab.client.nodes()), 60, "both nodes to be up")


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _row(name: str, found: list[float]) -> dict[str, object]:
    p99 = found[min(len(found) - 1, int(0.99 * len(found)))]
    return {
        "what": name,
        "injections": len(found),
        "p50_seconds": round(statistics.median(found), 3),
        "p99_seconds": round(p99, 3),
        "max_seconds": round(found[-1], 3),
        "goal_p99_seconds": GOALS_SECONDS[name],
        "holds": p99 <= GOALS_SECONDS[name],
    }


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table(title="from the fault to its effect")
    for column in ("what", "injections", "p50 s", "p99 s", "max s", "to hold, p99", "holds"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        *values, goal, holds = row.values()
        table.add_row(*map(str, values), f"<= {goal}", "[green]yes" if holds else "[red]no")
    return table


if __name__ == "__main__":
    main()
