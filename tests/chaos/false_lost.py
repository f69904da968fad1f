"""How often a healthy node is called suspect, or wrongly lost, on a bad network and on a starved processor.

`python -m tests.chaos.false_lost --minutes 5`, or `--only lossy`. Three nodes with the default lease and beat run jobs,
on the far side of a cable (`two_machines`); servers and scheduler are on the near side. One condition after the other:

- `calm`: nothing is wrong, but for what else this machine does;
- `lossy`: each packet on the cable is lost with a chance of 10 %, in both directions;
- `starved`: every process of the nodes, the jobs' too, has nice 19, in its session's group as well where the kernel
  shares by session, and is bound to one core with 8 that spin at nice 0, each a session. Servers and scheduler are not.

No node stops in any of them: whoever is called lost is called so wrongly. Needs root, for the namespaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil
import redis
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text

from cyxwiz_tasks import Client
from cyxwiz_tasks.broker_connection import connect
from cyxwiz_tasks.protocol.names import BEATS
from cyxwiz_tasks.settings import Settings
from db.engine import make_engine
from tests.acceptance.processes import ServiceProcess, wait_until
from tests.bench.bench_stack import bench_stack
from tests.chaos.two_machines import Machine, two_machines

NODES, JOBS_PER_NODE = 3, 2
LOSS, SPINNERS = 0.1, 8
USER_CODE = Path(__file__).with_name("user_code")
RESULTS = Path("false-lost-results.json")
#: the namespaces of a run that was started inside of them
_INSIDE = "CYXWIZ_FALSE_LOST_MACHINES"
_LOOK_SECONDS = 0.05

_NODE_EVENTS = "SELECT count(*) FROM events WHERE job_id IS NULL AND to_state = :state AND seq > :since"
_LOST_ATTEMPTS = "SELECT count(*) FROM events WHERE seq > :since AND detail ->> 'attempt_state' = 'lost'"
_NEWEST_EVENT = "SELECT coalesce(max(seq), 0) FROM events"


class FarNode(ServiceProcess):
    """A worker on the far side of the cable."""

    def __init__(self, machine: Machine, name: str, environment: dict[str, str], folder: Path) -> None:
        self.machine = machine
        options = ["worker", "--name", name, "--slots", str(JOBS_PER_NODE), "--path", str(USER_CODE)]
        super().__init__(name, options, environment, folder, " ready")

    @property
    def command_line(self) -> list[str]:
        return self.machine.command(*super().command_line)


@dataclass
class Lab:
    client: Client
    engine: Engine
    #: on the near side: what is measured through it is what lies in Redis, and not how it got there
    redis: redis.Redis
    near: Machine
    far: Machine
    folder: Path
    nodes: list[FarNode] = field(default_factory=list)

    def count(self, sql: str, **values: object) -> int:
        with self.engine.connect() as tx:
            return int(tx.scalar(text(sql), values) or 0)

    def beats(self) -> int:
        """How many beats Redis has taken: nobody else adds to a sorted set here but at registrations."""
        return int(self.redis.info("commandstats")["cmdstat_zadd"]["calls"])


# Conditions -------------------------------------------------------------------------------------------------------


@contextmanager
def calm(lab: Lab) -> Iterator[None]:
    yield


@contextmanager
def lossy(lab: Lab) -> Iterator[None]:
    for machine in (lab.near, lab.far):
        machine.lose(LOSS)
    try:
        yield
    finally:
        for machine in (lab.near, lab.far):
            machine.lose_nothing()


@contextmanager
def starved(lab: Lab) -> Iterator[None]:
    everywhere, core = os.sched_getaffinity(0), {max(os.sched_getaffinity(0))}
    code = f"import os\nos.sched_setaffinity(0, {core})\nos.setpriority(os.PRIO_PROCESS, 0, 0)\nwhile True: pass"
    spinners = [subprocess.Popen([sys.executable, "-c", code], start_new_session=True) for _ in range(SPINNERS)]
    try:
        _treat(lab.nodes, nice=19, cores=core)
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
        _treat(lab.nodes, nice=0, cores=everywhere)


def _treat(nodes: list[FarNode], *, nice: int, cores: set[int]) -> None:
    """Every thread of every process of these nodes; what they start later takes after them."""
    for node in nodes:
        agent = psutil.Process(node.process.pid)
        for process in [agent, *agent.children(recursive=True)]:
            with suppress(FileNotFoundError, ProcessLookupError):
                Path(f"/proc/{process.pid}/autogroup").write_text(str(nice))
            for thread in Path(f"/proc/{process.pid}/task").glob("*"):
                with suppress(ProcessLookupError):
                    os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)
                    os.sched_setaffinity(int(thread.name), cores)


CONDITIONS: dict[str, Callable[[Lab], AbstractContextManager[None]]] = {
    "calm": calm,
    "lossy": lossy,
    "starved": starved,
}


# Observation ------------------------------------------------------------------------------------------------------


def observe(lab: Lab, name: str, minutes: float) -> dict[str, object]:
    import detection_jobs

    gate = lab.folder / f"gate-{name}"
    jobs = [detection_jobs.waits.submit(str(gate)) for _ in range(NODES * JOBS_PER_NODE)]
    wait_until(lambda: all(lab.client.job(job.id)["state"] == "running" for job in jobs), 60, "all jobs to run")
    since, load = lab.count(_NEWEST_EVENT), os.getloadavg()[0]
    with CONDITIONS[name](lab):
        beats, segments = lab.beats(), lab.far.segments()
        silences = _watch_beats(lab, minutes * 60)
        beats, after = lab.beats() - beats, lab.far.segments()
    found = {
        "condition": name,
        "nodes": NODES,
        "minutes": minutes,
        "beats": beats,
        "suspect": lab.count(_NODE_EVENTS, state="suspect", since=since),
        "lost": lab.count(_NODE_EVENTS, state="lost", since=since),
        "lost_attempts": lab.count(_LOST_ATTEMPTS, since=since),
        "silence_p99_seconds": round(silences[int(0.99 * len(silences))], 2),
        "longest_silence_seconds": round(silences[-1], 2),
        "segments_sent_again": after["RetransSegs"] - segments["RetransSegs"],
        "segments_sent": after["OutSegs"] - segments["OutSegs"],
        "load_average_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    gate.touch()
    for job in jobs:
        job.result(timeout=120)
    wait_until(lambda: all(node["state"] == "up" for node in lab.client.nodes()), 120, "all nodes to be up")
    return found


def _watch_beats(lab: Lab, seconds: float) -> list[float]:
    """The pauses between beats of each node, by Redis' clock, sorted; one that is not over counts as far as it went."""
    last = dict(lab.redis.zrange(BEATS, 0, -1, withscores=True))
    pauses: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        for node, beat in lab.redis.zrange(BEATS, 0, -1, withscores=True):
            if beat != last.get(node, beat):
                pauses.append(beat - last[node])
            last[node] = beat
    whole, micro = lab.redis.time()
    return sorted([*pauses, *(whole + micro / 1e6 - beat for beat in last.values())])


# The lab ----------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--minutes", default=5.0, show_default=True, help="How long each condition lasts.")
@click.option("--only", type=click.Choice(list(CONDITIONS)))
def main(minutes: float, only: str | None) -> None:
    if _INSIDE not in os.environ:
        with two_machines() as machines:
            inside = os.environ | {_INSIDE: json.dumps([vars(machine) for machine in machines])}
            command = [sys.executable, "-m", "tests.chaos.false_lost", *sys.argv[1:]]
            raise SystemExit(subprocess.run(machines[0].command(*command), env=inside, check=False).returncode)
    console, rows = Console(width=140), []
    with _laboratory(*(Machine(**fields) for fields in json.loads(os.environ[_INSIDE]))) as lab:
        for name in [only] if only else CONDITIONS:
            console.print(f"{name}: {minutes:g} minutes ...", style="dim")
            rows.append(observe(lab, name, minutes))
    console.print(_table(rows))
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    raise SystemExit(any(row["lost"] or row["lost_attempts"] for row in rows))


@contextmanager
def _laboratory(near: Machine, far: Machine) -> Iterator[Lab]:
    sys.path.insert(0, str(USER_CODE))
    options = ("--only", "postgres,redis", "--listen", near.address)
    with bench_stack(*options) as client, tempfile.TemporaryDirectory() as text_folder:
        folder, home = Path(text_folder), Path(os.environ["CYXWIZ_HOME"])
        database_url = json.loads((home / "stack.json").read_text())["database_url"]
        near_url = client.broker_url
        far_url = near_url.replace("127.0.0.1", near.address)
        engine = make_engine(database_url, "false_lost")
        environment = {"CYXWIZ_HOME": str(home), "CYXWIZ_BROKER_URL": near_url}
        scheduler = ServiceProcess(
            "scheduler", ["scheduler"], environment | {"CYXWIZ_DATABASE_URL": database_url}, folder, "leading"
        )
        lab = Lab(client, engine, connect(near_url), near, far, folder)
        try:
            scheduler.ready()
            for number in range(NODES):
                of_node = {"CYXWIZ_HOME": str(folder / f"home{number}"), "CYXWIZ_BROKER_URL": far_url}
                lab.nodes.append(FarNode(far, f"node{number}", of_node, folder))
            for node in lab.nodes:
                node.ready()
            yield lab
        finally:
            for node in lab.nodes:
                node.teardown()
            scheduler.teardown()
            lab.redis.close()
            engine.dispose()


def _table(rows: list[dict[str, object]]) -> Table:
    given = Settings.model_fields
    beat, lease = given["heartbeat_seconds"].default, given["lease_seconds"].default
    table = Table(title=f"healthy nodes, taken for suspect or lost: a beat every {beat} s, a lease of {lease:g} s")
    columns = ("condition", "minutes", "beats", "suspect", "lost", "lost_attempts")
    silences = ("silence_p99_seconds", "longest_silence_seconds")
    for column in (*columns, "silence p99 s", "longest s", "segments sent again", "load average"):
        table.add_column(column.replace("_", " "), justify="left" if column == "condition" else "right")
    for row in rows:
        shown = [str(row[column]) for column in (*columns, *silences)]
        again = f"{row['segments_sent_again']} of {row['segments_sent']}"
        before, after = row["load_average_before_and_after"]  # type: ignore[misc]
        table.add_row(*shown, again, f"{before}, {after}")
    return table


if __name__ == "__main__":
    main()
