"""`cyxwiz up`: everything that a machine needs, as one command. Embedded servers, scheduler, workers, Flower."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from broker import flower
from broker.embedded import EmbeddedRedis
from broker.scheduler.hindrance import ANOTHER_LEADS
from broker.server_watch import ServerWatch
from broker.supervisor import Running, Service, Supervisor
from cyxwiz_tasks.errors import CyxwizError, InvalidSettings
from cyxwiz_tasks.settings import Settings
from db.embedded import EmbeddedPostgres
from db.embedded_server import EmbeddedServer, write_private

PARTS = ("postgres", "redis", "scheduler", "worker", "flower")
#: PostgreSQL after a crash reads what was written since its last checkpoint; ended meanwhile, it begins anew
RECOVERY_SECONDS = 600.0
#: for a node to stop, besides the grace that its jobs have
STOP_MARGIN_SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """What to run. `listen` is an address of this machine at which other machines reach the embedded Redis."""

    parts: tuple[str, ...] = PARTS
    workers: int = 1
    slots: int | None = None
    listen: str | None = None
    paths: tuple[Path, ...] = ()
    flower_port: int = flower.DEFAULT_PORT
    preload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - set(PARTS):
            raise InvalidSettings(f"--only: there is no {sorted(unknown)[0]!r}: choose among {', '.join(PARTS)}")
        if self.listen and "redis" not in self.parts:
            raise InvalidSettings("--listen: opens the embedded Redis, which --only leaves out")


@dataclass
class Stack:
    """A running stack: where it is reached, and the supervisor that looks after its services."""

    settings: Settings
    broker_url: str
    database_url: str
    supervisor: Supervisor | None = None
    flower_url: str | None = None
    flower_login: flower.Login | None = None
    join_line: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {"CYXWIZ_HOME": str(self.settings.home), "CYXWIZ_BROKER_URL": self.broker_url}


Say = Callable[[str, str], None]


class StackRunsAlready(CyxwizError):
    """A stack of this home runs already: use it, or stop it first."""


@contextmanager
def running(plan: Plan, settings: Settings, say: Say, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Stack]:
    """Start what `plan` says and stop it at the end. `say(name, text)` gets one line per service.

    Servers whose URL is given in the environment are used and not started. Raises StackRunsAlready, and
    ServerUnavailable with the reason where something does not start.
    """
    _make_home(settings.home)
    with ExitStack() as exits:
        exits.enter_context(_sole_owner(settings.home))
        stack = Stack(settings, broker_url="", database_url="")
        stack.database_url = _database(plan, settings, say, exits)
        stack.broker_url = _broker(plan, settings, stack, say, exits)
        if stack.database_url:
            _migrate(stack.database_url, say)
        services = list(_services(plan, stack))
        stack.supervisor = Supervisor(services, settings.home / "logs", lambda *event: _announce(say, *event))
        exits.callback(settings.stack_file.unlink, missing_ok=True)
        _write_stack_file(stack)
        exits.callback(stack.supervisor.stop)
        stack.supervisor.start(cancelled=cancelled)
        yield stack


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSettings(
            f"CYXWIZ_HOME: {home} cannot be made ({error.strerror}): name a folder in which you may write"
        ) from None


@contextmanager
def _sole_owner(home: Path) -> Iterator[None]:
    file = home / "stack.lock"
    try:
        lock = open(file, "a+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InvalidSettings(
            f"CYXWIZ_HOME: {file} cannot be written ({error.strerror}): start as the owner of that folder, "
            "or name one of your own"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackRunsAlready(
                f"a stack runs already in {home}: use it, stop it first, or set CYXWIZ_HOME to another folder"
            ) from None
        yield


def _timed_start(server: EmbeddedServer, exits: ExitStack, say: Say, part: str) -> None:
    began = time.monotonic()
    exits.enter_context(_looked_after(server, say, part))
    say(part, f"ready: {server.name} in {server.folder} ({time.monotonic() - began:.1f} s)")


@contextmanager
def _looked_after(server: EmbeddedServer, say: Say, part: str) -> Iterator[None]:
    with server:
        watch = ServerWatch(server, partial(say, part))
        watch.start()
        try:
            yield
        finally:
            watch.stop()
    say(part, "stopped")


def _database(plan: Plan, settings: Settings, say: Say, exits: ExitStack) -> str:
    if settings.database_url is not None:
        say("postgres", "given by CYXWIZ_DATABASE_URL")
        return settings.database()
    if "postgres" not in plan.parts:
        if "scheduler" in plan.parts:
            raise InvalidSettings("--only: a scheduler needs postgres: add it, or set CYXWIZ_DATABASE_URL")
        return ""
    server = EmbeddedPostgres(settings.home / "postgres", start_timeout_seconds=RECOVERY_SECONDS)
    _timed_start(server, exits, say, "postgres")
    return server.url


def _broker(plan: Plan, settings: Settings, stack: Stack, say: Say, exits: ExitStack) -> str:
    if settings.broker_url is not None:
        say("redis", "given by CYXWIZ_BROKER_URL")
        return settings.broker()
    if "redis" not in plan.parts:
        if set(plan.parts) & {"scheduler", "worker", "flower"}:
            raise InvalidSettings("--only: these services need redis: add it, or set CYXWIZ_BROKER_URL")
        return ""
    server = EmbeddedRedis(settings.home / "redis", listen=plan.listen)
    _timed_start(server, exits, say, "redis")
    if plan.listen:
        address = platform.node() if plan.listen in ("0.0.0.0", "::") else plan.listen  # noqa: S104
        stack.join_line = f"CYXWIZ_BROKER_URL={shlex.quote(server.url_for(address))} cyxwiz worker"
    return server.url


def _migrate(database_url: str, say: Say) -> None:
    from db.migrate import upgrade

    began = time.monotonic()
    upgrade(database_url)
    say("schema", f"ready: up to date ({time.monotonic() - began:.1f} s)")


def _services(plan: Plan, stack: Stack) -> Iterator[Service]:
    if "scheduler" in plan.parts:
        environment = stack.environment | {"CYXWIZ_DATABASE_URL": stack.database_url}
        yield Service("scheduler", ("scheduler",), environment, "event=leading", ANOTHER_LEADS, needed_to_the_last=True)
    if "worker" in plan.parts:
        yield from _workers(plan, stack)
    if "flower" in plan.parts:
        port = flower.free_port(plan.flower_port)
        stack.flower_login = flower.login(stack.settings.home)
        stack.flower_url = f"http://127.0.0.1:{port}/"
        yield Service("flower", ("flower", "--port", str(port)), stack.environment, "flower ready")


def _workers(plan: Plan, stack: Stack) -> Iterator[Service]:
    # What its jobs have to save, and then to end their processes and tell the scheduler.
    stop_timeout_seconds = stack.settings.preempt_grace_seconds + STOP_MARGIN_SECONDS
    for number in range(1, plan.workers + 1):
        name = platform.node() or "node"
        name = name if number == 1 else f"{name}-{number}"
        options = ["--name", name]
        if plan.slots is not None:
            options += ["--slots", str(plan.slots)]
        if plan.workers > 1:
            options += ["--share", f"{number}/{plan.workers}"]
        for path in plan.paths:
            options += ["--path", str(path)]
        for module in plan.preload:
            options += ["--preload", module]
        if plan.listen is None and stack.settings.broker_url is None:
            # Only this user's own programs reach the broker, so a folder that they name is as good as theirs.
            options.append("--submitted-paths")
        yield Service(
            f"worker-{name}",
            ("worker", *options),
            stack.environment,
            " ready",
            stop_timeout_seconds=stop_timeout_seconds,
        )


def _write_stack_file(stack: Stack) -> None:
    facts = {
        "broker_url": stack.broker_url,
        "database_url": stack.database_url,
        "flower_url": stack.flower_url,
        "pid": os.getpid(),
    }
    write_private(stack.settings.stack_file, json.dumps({name: value for name, value in facts.items() if value}))


def _announce(say: Say, running: Running, event: str) -> None:
    if event == "died":
        assert running.process is not None
        status, pause = running.process.returncode, (running.restart_at or 0.0) - time.monotonic()
        say(running.service.name, f"died with status {status}, starts again in {pause:.1f} s; log: {running.log_file}")
    elif event == "ready":
        say(running.service.name, f"ready: {_detail(running)} ({time.monotonic() - running.started_at:.1f} s)")
    else:
        say(running.service.name, event)


def _detail(running: Running) -> str:
    line = running.ready_line() or ""
    if running.service.standby_text and running.service.standby_text in line:
        return "stands by, for another one leads"
    return line.partition(running.service.ready_text)[2].strip(" :") or f"pid {running.process and running.process.pid}"
