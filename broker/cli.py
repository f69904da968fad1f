"""The services' commands: `cyxwiz up`, `demo`, `scheduler` and `flower`. What they start is imported in each."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.settings import settings

if TYPE_CHECKING:
    from broker.stack import Plan, Stack

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
PARTS_HELP = "Start only these, separated by commas: postgres, redis, scheduler, worker, flower."


class StopSignal:
    """SIGINT, SIGTERM and SIGHUP as a condition that loops ask; the second of the first two interrupts at once."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)
        # Of a terminal that is closed, often twice: by the shell and by the kernel. `nohup` has it ignored.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._receive)

    def __call__(self) -> bool:
        return self.received

    def _receive(self, number: int, _: Any) -> None:
        if self.received and number != signal.SIGHUP:
            raise KeyboardInterrupt
        self.received = True


def say_on(console: Console) -> Callable[[str, str], None]:
    """One line per service and event: its name, then what happened. One that cannot be written is left out."""

    def say(name: str, text: str) -> None:
        first = re.split("[: ]", text, maxsplit=1)[0]
        colour = {"ready": "green", "died": "red", "cannot": "red", "stopped": "dim"}.get(first, "cyan")
        # The terminal may be closed, the disk full, a letter unknown to it: no reason to end the services, or to stop
        # them out of order.
        with suppress(OSError, ValueError):
            console.print(Text.assemble((f"{name:<22} ", "bold"), (text, colour)), soft_wrap=True)

    return say


@click.command()
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Nodes on this machine.")
@click.option("--slots", type=click.IntRange(1), help="Jobs that a node runs at a time (default: one per GPU).")
@click.option("--only", help=PARTS_HELP)
@click.option("--listen", metavar="HOST", help="Also open the embedded Redis at this address, for other machines.")
@click.option("--path", "paths", multiple=True, type=_FOLDER, help="Folder with modules of jobs.")
@click.option("--preload", multiple=True, metavar="MODULE", help="Import it once, for all jobs, which start sooner.")
@click.option("--flower-port", default=5555, show_default=True, help="Another free port is taken if this one is not.")
def up(
    workers: int,
    slots: int | None,
    only: str | None,
    listen: str | None,
    paths: tuple[Path, ...],
    preload: tuple[str, ...],
    flower_port: int,
) -> None:
    """Start everything on this machine and keep it running.

    PostgreSQL and Redis come with the installation; CYXWIZ_DATABASE_URL and CYXWIZ_BROKER_URL name others. CYXWIZ_HOME
    is where data, logs and artifacts lie. Ctrl-C stops all in order.
    """
    from broker.stack import PARTS, Plan, running

    parts = tuple(part.strip() for part in only.split(",")) if only else PARTS
    resolved = tuple(path.resolve() for path in paths)
    plan = Plan(parts, workers, slots, listen, resolved, flower_port, preload)
    stop, console = StopSignal(), Console()
    with running(plan, settings(), say_on(console), cancelled=stop) as stack:
        assert stack.supervisor is not None
        if not stop():
            _greet(console, stack, plan)
        stack.supervisor.watch(until=stop)
        with suppress(OSError):
            console.print("stopping", style="dim")


def _greet(console: Console, stack: Stack, plan: Plan) -> None:
    if stack.flower_url and stack.flower_login:
        show_flower(console, stack)
    if stack.join_line:
        console.print("\nOn another machine, this line starts a worker that joins:", style="bold")
        console.print(f"  {stack.join_line}", soft_wrap=True, highlight=False, markup=False)
        if "worker" in plan.parts:
            console.print("  (with a copy of your modules there: add --path FOLDER)", style="dim")
    console.print("\nup: Ctrl-C stops everything", style="bold green")


def show_flower(console: Console, stack: Stack) -> None:
    """Where Flower is, and its password if it was generated just now."""
    from broker.flower import USER

    assert stack.flower_login is not None
    kept = stack.settings.home / "flower.password"
    secret = f"password {stack.flower_login.password}" if stack.flower_login.is_new else "password"
    console.print(f"\nFlower: {stack.flower_url}  user {USER}, {secret} (kept in {kept})", soft_wrap=True, markup=False)


@click.command()
def demo() -> None:
    """Train a real model through the queue, live, on a stack that starts and stops by itself."""
    from broker.demo import run

    raise SystemExit(run(settings(), Console(), StopSignal()))


@click.command()
def scheduler() -> None:
    """Run the scheduler. Any number may run: one leads, the others stand by."""
    from broker.scheduler.command import run_scheduler

    run_scheduler(settings())


@click.command()
@click.option("--address", default="127.0.0.1", show_default=True)
@click.option("--port", default=5555, show_default=True)
@click.option("--auth/--no-auth", default=True, help="Ask for the password (on by default).")
def flower(address: str, port: int, auth: bool) -> None:
    """Serve Flower: queues, workers, and tasks with their progress."""
    from broker import flower as service

    if any(name.startswith("FLOWER_") for name in os.environ):
        raise InvalidSettings("FLOWER_*: not read here; use the options of `cyxwiz flower`")
    # Fails here, with a sentence, where there is no stack.
    settings().broker()
    login = service.login(settings().home) if auth else None
    if login is not None and login.is_new:
        click.echo(f"Flower: user {service.USER}, password {login.password}")
    service.serve(address, port, login.password if login else None)
