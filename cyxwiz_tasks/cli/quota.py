"""`cyxwiz quota set|remove PROJECT`."""

from __future__ import annotations

import click

from cyxwiz_tasks.cli.options import json_option, print_json
from cyxwiz_tasks.cli.quota_table import sentence
from cyxwiz_tasks.client import Client
from cyxwiz_tasks.errors import InvalidSettings

_LIMITS = ("lend_gpus", "lend_cpus", "borrow_gpus", "borrow_cpus")


@click.group(short_help="Say what a project owns of the cluster.")
def command() -> None:
    """Say what a project owns of the cluster. While it does not use it, others may; then they give it back."""


@command.command("set")
@click.argument("project")
@click.option("--gpus", type=click.IntRange(0), help="GPUs that it owns.")
@click.option("--cpus", type=click.IntRange(0), help="Cores that it owns.")
@click.option("--lend-gpus", metavar="N", help="Of its own, so many are used by others while they are idle. none: all.")
@click.option("--lend-cpus", metavar="N", help="The same of cores.")
@click.option("--borrow-gpus", metavar="N", help="It may use so many beyond its own. none: any number.")
@click.option("--borrow-cpus", metavar="N", help="The same of cores.")
@click.option("--weight", type=float, help="Its part of what projects share, in proportion; 1 at first.")
@json_option
def set_quota(
    project: str, gpus: int | None, cpus: int | None, weight: float | None, as_json: bool, **limits: str | None
) -> None:
    """Set what a project owns. What is not given stays as it is, at first nothing."""
    given = {"gpus": gpus, "cpus": cpus, "weight": weight}
    changes: dict[str, float | None] = {name: value for name, value in given.items() if value is not None}
    changes |= {name: _limit(name, text) for name in _LIMITS if (text := limits[name]) is not None}
    if not changes:
        raise click.UsageError("give --gpus, --cpus or another option; `cyxwiz quotas` shows what is")
    with Client() as client:
        row = client.set_quota(project, **changes)
    print_json(row) if as_json else click.echo(sentence(row))


@command.command("remove")
@click.argument("project")
@json_option
def remove(project: str, as_json: bool) -> None:
    """Let a project own nothing."""
    with Client() as client:
        row = client.remove_quota(project)
    print_json(row) if as_json else click.echo(sentence(row))


def _limit(name: str, text: str) -> float | None:
    if text == "none":
        return None
    if not text.isdecimal():
        option = name.replace("_", "-")
        raise InvalidSettings(f"--{option}: {text} is not a whole number: write 0 or more, or none for no limit")
    return int(text)
