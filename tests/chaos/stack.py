"""The stack under test: two schedulers and some nodes as real processes, each behind proxies of its own.

    node k ---- proxy ---- Redis ---- proxy ---- scheduler k ---- proxy ---- PostgreSQL
    client ---- proxy ------^

A service that dies is started again after a short random pause, as a supervisor would.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from db.migrate import upgrade
from tests.acceptance.processes import ServiceProcess
from tests.chaos.clock import faked_clock_environment
from tests.chaos.faulty_proxy import FaultyProxy
from tests.chaos.servers import Servers

USER_CODE = Path(__file__).with_name("user_code")
#: in the environment of every process of a run, jobs included: their environment lets PYTHON* pass
MARKER = "PYTHONCHAOSRUN"
LEASE_SECONDS = 6.0
_RESTART_SECONDS = (0.2, 1.5)
_TMPFS_BYTES = 48 * 2**20


@dataclass
class Member:
    """One supervised service, the proxies that it speaks through, and the folder in which its failpoints are armed."""

    name: str
    proxies: dict[str, FaultyProxy]
    failpoints: Path
    home: Path
    process: ServiceProcess | None = None
    #: when it is started again, monotonic
    due: float | None = None
    #: nobody starts it again until this is False
    held: bool = False
    #: its clock can be set, by this file
    clock: Path | None = None
    deaths: list[dict[str, Any]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def alive(self) -> bool:
        return self.process is not None and self.process.process.poll() is None


class Stack:
    """Everything below `folder`. Use `start()` and `stop()`."""

    def __init__(self, folder: Path, *, nodes: int = 3, slots: int = 4, schedulers: int = 2, seed: int = 0) -> None:
        self.folder = folder
        self.run_id = secrets.token_hex(8)
        #: looked for in logs, the record and Redis: must appear nowhere
        self.canary = f"canary-{secrets.token_hex(12)}"
        self.servers = Servers(folder)
        self.slots = slots
        self.schedulers = [self._member(f"scheduler{number}") for number in range(schedulers)]
        self.nodes = [self._member(f"node{number}") for number in range(nodes)]
        self.client_proxy: FaultyProxy
        self._rng = random.Random(seed)
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    @property
    def members(self) -> list[Member]:
        return [*self.schedulers, *self.nodes]

    # Life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.servers.start()
        upgrade(self.servers.postgres.url)
        self.client_proxy = self._redis_proxy()
        for scheduler in self.schedulers:
            scheduler.proxies = {
                "redis": self._redis_proxy(),
                "postgres": FaultyProxy(str(self.servers.postgres.socket_path)).start(),
            }
        self._mount_small_disk(self.nodes[0].home)
        for number, node in enumerate(self.nodes):
            node.proxies = {"redis": self._redis_proxy()}
            self._start_node(node, gpus="2x24GB:8.9" if number > 0 else None)
        for scheduler in self.schedulers:
            self._start(scheduler, ["scheduler"], "standing_by", CYXWIZ_DATABASE_URL=self.database_url(scheduler))
        for member in self.members:
            assert member.process is not None
            member.process.ready()
        self._supervisor.start()

    def stop(self) -> None:
        """End in order what runs; the servers stay until `close()`."""
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for member in self.members:
            if member.alive():
                os.kill(member.pid, signal.SIGCONT)  # for what a fault has frozen
        for member in [*self.nodes, *self.schedulers]:
            if member.process is not None:
                member.process.teardown()

    def close(self) -> None:
        for member in self.members:
            for proxy in member.proxies.values():
                proxy.stop()
        if hasattr(self, "client_proxy"):
            self.client_proxy.stop()
        self.servers.stop()
        if os.path.ismount(self.nodes[0].home):
            subprocess.run(["umount", "--lazy", str(self.nodes[0].home)], check=False)

    # Who and where --------------------------------------------------------------------------------------------

    @property
    def client_url(self) -> str:
        return self._broker_url(self.client_proxy)

    def database_url(self, scheduler: Member) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{scheduler.proxies['postgres'].port}/postgres"

    @property
    def secrets(self) -> list[str]:
        return [self.canary, urlsplit(self.servers.redis.url).password or ""]

    def leader(self) -> Member | None:
        """The scheduler that leads by the record, if it runs."""
        with suppress(psycopg.Error), self.servers.database(patience_seconds=5.0) as connection:
            row = connection.execute("SELECT holder FROM leadership").fetchone()
            pid = int(str(row[0]).rpartition(":")[2]) if row and row[0] else None
            return next((one for one in self.schedulers if one.alive() and one.pid == pid), None)
        return None

    def node(self, choice: int) -> Member:
        return self.nodes[choice % len(self.nodes)]

    def deaths(self) -> list[dict[str, Any]]:
        return sorted((death for member in self.members for death in member.deaths), key=lambda death: death["at"])

    # Supervision ----------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        while not self._stopping.wait(0.05):
            for member in self.members:
                self._look_after(member)

    def _look_after(self, member: Member) -> None:
        if member.alive() or member.held:
            return
        assert member.process is not None
        now = time.monotonic()
        if member.due is None:
            status = member.process.process.returncode
            member.deaths.append({"at": time.time(), "name": member.name, "pid": member.pid, "status": status})
            member.due = now + self._rng.uniform(*_RESTART_SECONDS)
        elif now >= member.due:
            member.due = None
            member.process.start()

    # Parts ----------------------------------------------------------------------------------------------------

    def _member(self, name: str) -> Member:
        group = "scheduler" if name.startswith("scheduler") else name
        failpoints = self.folder / "failpoints" / group
        failpoints.mkdir(parents=True, exist_ok=True)
        home = self.folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return Member(name, {}, failpoints, home)

    def _start_node(self, node: Member, *, gpus: str | None) -> None:
        arguments = ["worker", "--name", node.name, "--slots", str(self.slots), "--path", str(USER_CODE)]
        gpu_environment = {"CYXWIZ_FAKE_GPUS": gpus} if gpus else {}
        self._start(node, arguments, " ready", **gpu_environment)

    def _start(self, member: Member, arguments: list[str], prompt: str, **more: str) -> None:
        environment = {
            MARKER: self.run_id,
            "CHAOS_API_TOKEN": self.canary,
            "CYXWIZ_HOME": str(member.home),
            "CYXWIZ_BROKER_URL": self._broker_url(member.proxies["redis"]),
            "CYXWIZ_FAILPOINTS": str(member.failpoints),
            "CYXWIZ_LEASE_SECONDS": str(LEASE_SECONDS),
            # Here three lost nodes say nothing of a job, nor three killed jobs in a row of a node.
            "CYXWIZ_POISON_LIMIT": "100",
            "CYXWIZ_QUARANTINE_SECONDS": "1",
            # Jobs are short: who waits for all of a node gets it promised at once, and then others move.
            "CYXWIZ_RESERVE_AFTER_SECONDS": "0",
            # A training that is placed on another node goes on there.
            "CYXWIZ_ARTIFACT_STORE": f"file://{self.folder}/store",
            **more,
        }
        if member in (self.nodes[-1], self.schedulers[-1]):
            member.clock = self.folder / f"{member.name}.clock"
            environment |= faked_clock_environment(member.clock)
        member.process = ServiceProcess(member.name, arguments, environment, self.folder / "logs", prompt)

    def _redis_proxy(self) -> FaultyProxy:
        return FaultyProxy(("127.0.0.1", self.servers.redis.port)).start()

    def _broker_url(self, proxy: FaultyProxy) -> str:
        return f"redis://:{self.servers.redis.password}@127.0.0.1:{proxy.port}/0"

    @staticmethod
    def _mount_small_disk(folder: Path) -> None:
        """A small file system for one node's folder, where this user may mount one."""
        command = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES},mode=0700", "chaos", str(folder)]
        with suppress(OSError):
            subprocess.run(command, check=False, capture_output=True)


class Journal:
    """Lines of JSON in a file, from any thread, each with both clocks of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - as long as this object

    def write(self, **fields: Any) -> None:
        line = json.dumps({"at": time.time(), "monotonic": time.monotonic(), **fields})
        with self._lock:
            self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()
