"""`cyxwiz why ID`."""

from __future__ import annotations

import click

from cyxwiz_tasks.cli.options import find_id, json_option, print_json
from cyxwiz_tasks.client import Client


@click.command(short_help="Say where a job stands and what would make it fit.")
@click.argument("id")
@json_option
def command(id: str, as_json: bool) -> None:
    """Say where a job stands and, while it waits, what would make it fit."""
    with Client() as client:
        found = client.why(find_id(client, id))
    print_json(found.value) if as_json else click.echo(str(found))
