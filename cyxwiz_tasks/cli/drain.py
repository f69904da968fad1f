"""`cyxwiz drain NODE`."""

from __future__ import annotations

from typing import Any

import click

from cyxwiz_tasks.cli.durations import show_seconds
from cyxwiz_tasks.cli.options import json_option, print_json
from cyxwiz_tasks.client import Client


@click.command(short_help="Empty a node, for maintenance.")
@click.argument("node")
@click.option("--deadline", metavar="TIME", help="Let jobs run on for so long: 30m, 4h; never: until they end.")
@click.option("--reason", default="", help="Kept in the record.")
@json_option
def command(node: str, deadline: str | None, reason: str, as_json: bool) -> None:
    """Give a node, by name or id, no new work, and empty it: its jobs go on elsewhere.

    Without a deadline they are asked at once to write a checkpoint and give their place back. The node stays drained
    over restarts, until `cyxwiz undrain`.
    """
    with Client() as client:
        row = client.drain(node, 0.0 if deadline is None else None if deadline == "never" else deadline, reason)
    print_json(row) if as_json else click.echo(_sentence(row))


def _sentence(row: dict[str, Any]) -> str:
    left, seconds = row["assigned"] + row["running"], row["cordon_seconds_left"]
    name = f"{row['name']} ({row['id'][:8]})"
    if not left:
        return f"node {name} is drained: nothing runs there"
    jobs = "1 job is" if left == 1 else f"{left} jobs are"
    if seconds is None:
        return f"node {name} drains: {jobs} left to end there, nothing new comes"
    when = f"in {show_seconds(seconds)}" if seconds > 0 else "now"
    return f"node {name} drains: {jobs} asked {when} to go on elsewhere; `cyxwiz nodes` shows when it is drained"
