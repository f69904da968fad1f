"""`cyxwiz job ID`."""

from __future__ import annotations

import click
from rich.console import Console

from cyxwiz_tasks.cli.job_table import show_job
from cyxwiz_tasks.cli.options import find_id, json_option, print_json
from cyxwiz_tasks.client import Client


@click.command(short_help="Show one job: state, attempts, result.")
@click.argument("id")
@json_option
def command(id: str, as_json: bool) -> None:
    """Show one job. ID may be the start or the end of an id, if no other job has it."""
    with Client() as client:
        record = client.job(find_id(client, id))
    print_json(record) if as_json else show_job(record, Console())
