"""One run: a stack, a workload, a plan of faults; afterwards the files that the checker judges.

`run_chaos` returns the folder with: run.json, client.jsonl, witness.jsonl, nemesis.jsonl, record.json, leftovers.json
and logs/.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyxwiz_tasks import Client
from cyxwiz_tasks.celery_app import app
from cyxwiz_tasks.errors import CyxwizError
from cyxwiz_tasks.settings import settings
from tests.chaos import leftovers
from tests.chaos.faults.fault import Scene
from tests.chaos.invariants.leftovers import is_work
from tests.chaos.nemesis import Nemesis, available
from tests.chaos.schedule import plan
from tests.chaos.stack import LEASE_SECONDS, USER_CODE, Journal, Stack
from tests.chaos.workload import Workload, plan_jobs

_LEAST_SETTLE_SECONDS = 10.0
#: a backlog that has not fallen for so long is stuck
_STILL_SECONDS = 30.0
_ENDED = "('completed', 'failed', 'cancelled')"


@dataclass(frozen=True)
class Order:
    """What is asked for. `seconds` is how long jobs come in and faults strike."""

    seed: int
    jobs: int = 2000
    faults: int = 200
    seconds: float = 600.0
    #: after the last fault has healed, every job must end within so long
    settle_seconds: float = 120.0
    nodes: int = 3
    slots: int = 4
    #: these kinds alone, if there are some
    only: tuple[str, ...] = ()


Say = Callable[[str], None]


def run_chaos(order: Order, folder: Path, say: Say = lambda text: None) -> Path:
    """Run it in `folder`, which other users can pass: as root, PostgreSQL runs as one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    stack = Stack(folder, nodes=order.nodes, slots=order.slots, seed=order.seed)
    scene = Scene(stack, folder / "witness.jsonl", threading.Event())
    try:
        stack.start()
        say("stack is up")
        with _user_of(stack, folder):
            facts = _drive(order, stack, scene, folder, say)
            say("settling")
            facts |= _settle(order, stack, facts["quiet_from"], say)
        _save(stack, folder, facts | asdict(order) | {"lease_seconds": LEASE_SECONDS})
    finally:
        scene.over.set()
        stack.stop()
        stack.close()
    return folder


@contextmanager
def _user_of(stack: Stack, folder: Path) -> Any:
    """This process as a user's: its environment names the broker, its path has the jobs."""
    for name in [name for name in os.environ if name.startswith("CYXWIZ_")]:
        del os.environ[name]
    os.environ |= {"CYXWIZ_BROKER_URL": stack.client_url, "CYXWIZ_HOME": str(folder / "homes" / "client")}
    settings.cache_clear()
    app.reconnect()
    if str(USER_CODE) not in sys.path:
        sys.path.insert(0, str(USER_CODE))
    yield
    for name in ("CYXWIZ_BROKER_URL", "CYXWIZ_HOME"):
        del os.environ[name]
    settings.cache_clear()


def _drive(order: Order, stack: Stack, scene: Scene, folder: Path, say: Say) -> dict[str, Any]:
    kinds, missing = available(stack, order.only)
    planned = plan(order.seed, kinds, order.faults, order.seconds, order.nodes)
    client_log, nemesis_log = Journal(folder / "client.jsonl"), Journal(folder / "nemesis.jsonl")
    jobs = plan_jobs(order.seed, order.jobs, order.seconds * 0.97)
    workload = Workload(stack.client_url, jobs, scene.witness, stack.run_id, client_log)
    nemesis = Nemesis(scene, planned, nemesis_log)
    worker = threading.Thread(target=workload.run, name="workload", daemon=True)
    began = time.time()
    worker.start()
    nemesis.start()
    while nemesis.alive:
        nemesis.join(10.0)
        say(f"{time.time() - began:4.0f} s: {_counts(stack)}")
    workload.faults_over.set()
    quiet_from = max(time.time(), began + order.seconds)
    # Somebody may still wait for a result that never comes.
    worker.join(max(0.0, quiet_from - time.time()) + order.settle_seconds)
    workload.stop.set()
    worker.join()
    client_log.close()
    nemesis_log.close()
    return {
        "began_at": began,
        "ended_at": time.time(),
        "quiet_from": quiet_from,
        "planned": [one.as_dict() for one in planned],
        "kinds": sorted(kind.name for kind in kinds),
        "unavailable": missing,
    }


def _counts(stack: Stack) -> str:
    try:
        with stack.servers.database(patience_seconds=0.5) as connection:
            rows = connection.execute("SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state").fetchall()
        return ", ".join(f"{state} {count}" for state, count in rows)
    except Exception as error:
        return f"no word of the record ({type(error).__name__})"


def _settle(order: Order, stack: Stack, quiet_from: float, say: Say) -> dict[str, Any]:
    """Wait until every job has ended and Redis is quiet.

    For `settle_seconds` from the end of all faults on, and for as long as a backlog that the faults left falls.
    """
    quiet: dict[str, Any] = {"settled": False}
    released: list[str] = []
    deadline = max(quiet_from + order.settle_seconds, time.time() + _LEAST_SETTLE_SECONDS)
    fewest = _unended(stack)
    while time.time() < deadline:
        released += _release_held(stack)
        if (left := _unended(stack)) < fewest:
            fewest, deadline = left, max(deadline, time.time() + _STILL_SECONDS)
        if left == 0 and all(member.alive() for member in stack.members) and _is_quiet(stack):
            quiet = {"settled": True}
            break
        time.sleep(0.25)
    took_seconds = time.time() - quiet_from
    say(f"settled: {quiet['settled']}, {took_seconds:.1f} s after the last fault; {_counts(stack)}")
    return quiet | {"settle_took_seconds": took_seconds, "released": released}


def _unended(stack: Stack) -> int:
    with stack.servers.database() as connection:
        row = connection.execute(f"SELECT count(*) FROM jobs WHERE state NOT IN {_ENDED}").fetchone()
    return int(row[0]) if row else 0


def _release_held(stack: Stack) -> list[str]:
    """As a person would, once the nodes are well again: the faults may have struck one job three times."""
    with stack.servers.database() as connection:
        held = [str(row[0]) for row in connection.execute("SELECT id FROM jobs WHERE state = 'held'")]
    if held:
        with Client(stack.client_url) as client, suppress(CyxwizError):
            for job_id in held:
                client.release(job_id)
    return held


def _is_quiet(stack: Stack) -> bool:
    lengths = leftovers.dump_redis(stack)["lengths"]
    return not any(is_work(name) for name in lengths) and not leftovers.job_children(stack)


def _save(stack: Stack, folder: Path, facts: dict[str, Any]) -> None:
    record = leftovers.dump_record(stack)
    left: dict[str, Any] = {"redis": leftovers.dump_redis(stack), "job_children": leftovers.job_children(stack)}
    left["secrets"] = leftovers.find_secrets(stack, folder, record)
    stack.stop()
    left["processes"] = leftovers.processes(stack)
    left["sessions"] = leftovers.sessions(stack)
    left["deaths"] = stack.deaths()
    for name, content in (("record", record), ("leftovers", left), ("run", facts)):
        (folder / f"{name}.json").write_text(json.dumps(content, default=str))
