"""`cyxwiz jobs`."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from cyxwiz_tasks.cli.job_table import show_jobs
from cyxwiz_tasks.cli.options import find_array, json_option, print_json
from cyxwiz_tasks.client import Client
from cyxwiz_tasks.states import JobState


@click.command(short_help="List jobs, newest first.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in JobState]),
    help="Only these; repeatable.",
)
@click.option("--owner")
@click.option("--name", help="A part of the job's or the task's name.")
@click.option("--node", help="A node's name.")
@click.option("--array", metavar="ID", help="The jobs of one array, by their indexes.")
@click.option("-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@json_option
def command(states: tuple[str, ...], limit: int, as_json: bool, **filters: Any) -> None:
    """List jobs, newest first."""
    chosen = {name: value for name, value in filters.items() if value is not None}
    if states:
        chosen["states"] = list(states)
    with Client() as client:
        if "array" in chosen:
            chosen["array"] = find_array(client, chosen["array"])
        rows = client.jobs(limit=limit, **chosen)
    if not rows and not as_json:
        click.echo("no such jobs: `cyxwiz jobs` lists all" if chosen else "no jobs: `cyxwiz submit` sends one")
        return
    print_json(rows) if as_json else show_jobs(rows, Console())
