"""The `cyxwiz` command. Each command's module is imported when it runs; this one imports next to nothing."""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from cyxwiz_tasks import errors
from cyxwiz_tasks.cli.supervised import end_with_supervisor
from cyxwiz_tasks.version import __version__

#: Commands of this package by module. The other packages' are entry points of this group.
_OWN = {
    "submit": "submit",
    "schedule": "schedule",
    "schedules": "schedules",
    "jobs": "jobs",
    "job": "job",
    "logs": "logs",
    "cancel": "cancel",
    "release": "release",
    "why": "why",
    "plan": "plan",
    "nodes": "nodes",
    "drain": "drain",
    "undrain": "undrain",
    "usage": "usage",
    "limit": "limit",
    "quota": "quota",
    "quotas": "quotas",
}
_ENTRY_POINTS = "cyxwiz.commands"

#: What `cyxwiz --help` shows without importing any command.
_SECTIONS = {
    "Jobs": {
        "submit": "Send a training, or a job function, and follow it.",
        "schedule": "Send a job again and again, or stop doing so.",
        "schedules": "List schedules.",
        "jobs": "List jobs, newest first.",
        "job": "Show one job: state, attempts, result.",
        "logs": "Show what a job writes.",
        "cancel": "End jobs, wherever they are.",
        "release": "Put held jobs back into the queue.",
        "why": "Say where a job stands and what would make it fit.",
        "plan": "Say where a job with given needs would run.",
    },
    "Nodes": {
        "nodes": "List nodes and what they can do.",
        "drain": "Empty a node, for maintenance.",
        "undrain": "Let a node take work again.",
        "worker": "Turn this machine into a node.",
    },
    "Sharing": {
        "usage": "Show who has how much of the cluster.",
        "limit": "Limit what one owner may have.",
        "quota": "Say what a project owns of the cluster.",
        "quotas": "Show what projects own, hold and borrow.",
    },
    "Services": {
        "demo": "Train a real model through the queue, from nothing.",
        "up": "Start everything on this machine.",
        "scheduler": "Run the scheduler.",
        "flower": "Serve Flower, Celery's dashboard.",
        "db": "Upgrade and check the database.",
    },
}

JOB_FAILED, USAGE, NO_STACK = 1, 2, 3
_EXITS: dict[type[errors.CyxwizError], int] = {
    errors.InvalidJob: USAGE,
    errors.InvalidSettings: USAGE,
    errors.NotFound: USAGE,
    errors.JobConflict: USAGE,
    errors.JobRefused: USAGE,
    errors.LimitReached: USAGE,
    errors.NoStack: NO_STACK,
    errors.ServerUnavailable: NO_STACK,
    errors.SchedulerUnavailable: NO_STACK,
}


class Commands(click.Group):
    """A group that imports a command when it is called, and shows errors of ours as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_OWN, *_services()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OWN:
            module = import_module(f"cyxwiz_tasks.cli.{_OWN[cmd_name]}")
            return module.command  # type: ignore[no-any-return]
        found = _services().get(cmd_name)
        if found is None:
            return None
        try:
            return found.load()  # type: ignore[no-any-return]
        except ModuleNotFoundError as error:
            package = "worker" if cmd_name == "worker" else "server"
            raise click.ClickException(
                f"`cyxwiz {cmd_name}` needs {error.name}, which is not installed: pip install 'cyxwiz-tasks[{package}]'"
            ) from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            like = get_close_matches(args[0], self.list_commands(ctx), 1)
            advice = f"Did you mean {like[0]!r}?" if like else "`cyxwiz --help` lists them."
            raise click.UsageError(f"{error.message} {advice}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = {*_OWN, *_services()}
        for section, commands in _SECTIONS.items():
            rows = [(name, text) for name, text in commands.items() if name in known]
            with formatter.section(section):
                formatter.write_dl(rows)
        others = sorted(known - {name for commands in _SECTIONS.values() for name in commands})
        if others:
            with formatter.section("Others"):
                formatter.write_dl([(name, "") for name in others])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except errors.CyxwizError as error:
            code = next((code for kind, code in _EXITS.items() if isinstance(error, kind)), JOB_FAILED)
            click.echo(_shown(error, ctx.meta.get("cyxwiz.json", False)), err=True)
            ctx.exit(code)


@cache
def _services() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=_ENTRY_POINTS)}


def _shown(error: errors.CyxwizError, as_json: bool) -> str:
    if as_json:
        return json.dumps({"error": type(error).__name__, "message": str(error)})
    return f"error: {' '.join(str(error).split())}"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="cyxwiz-tasks", message="%(version)s")
def main() -> None:
    """GPU scheduling for Celery.

    `cyxwiz demo` shows all of it in a minute; `cyxwiz up` starts it to stay.
    """
    end_with_supervisor()


if __name__ == "__main__":
    main()
