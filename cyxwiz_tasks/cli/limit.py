"""`cyxwiz limit OWNER`."""

from __future__ import annotations

from typing import Any

import click

from cyxwiz_tasks.cli.options import json_option, print_json
from cyxwiz_tasks.client import Client
from cyxwiz_tasks.errors import InvalidSettings

_OPTIONS = ("running", "waiting", "per_minute", "weight")


@click.command(short_help="Limit what one owner may have.")
@click.argument("owner")
@click.option("--running", metavar="N", help="Jobs that run at a time: more wait. none: as many as there is room for.")
@click.option("--waiting", metavar="N", help="Jobs that wait: more are refused. none: any number.")
@click.option("--per-minute", metavar="N", help="Submissions a minute: more are refused. none: any number.")
@click.option("--weight", metavar="W", help="His part of what owners share, in proportion; 1 at first.")
@json_option
def command(owner: str, as_json: bool, **given: str | None) -> None:
    """Limit what one owner may have, over all projects. What is not given stays as it is.

    `cyxwiz usage` shows what each has. The settings CYXWIZ_OWNER_RUNNING_LIMIT, CYXWIZ_OWNER_WAITING_LIMIT and
    CYXWIZ_OWNER_SUBMISSIONS_PER_MINUTE are for all who have none of their own.
    """
    changes = {name: _number(name, text) for name in _OPTIONS if (text := given[name]) is not None}
    if not changes:
        raise click.UsageError("give --running, --waiting, --per-minute or --weight; `cyxwiz usage` shows what is")
    with Client() as client:
        found = client.set_limits(owner, **changes)
    print_json(found) if as_json else click.echo(_sentence(found))


def _number(name: str, text: str) -> float | None:
    if text == "none" and name != "weight":
        return None
    is_count = name in ("running", "waiting")
    try:
        return int(text) if is_count else float(text)
    except ValueError:
        option, kind = name.replace("_", "-"), "whole number" if is_count else "number"
        raise InvalidSettings(f"--{option}: {text} is not a {kind}: write one, such as --{option} 8") from None


def _sentence(found: dict[str, Any]) -> str:
    parts = [
        f"{words} {'without a limit' if found[name] is None else f'{found[name]:g}'}"
        for name, words in (("running", "running"), ("waiting", "waiting"), ("per_minute", "submissions a minute"))
    ]
    return f"{found['owner']}: {', '.join(parts)}, weight {found['weight']:g}"
