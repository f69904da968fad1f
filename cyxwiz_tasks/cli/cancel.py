"""`cyxwiz cancel ID...`."""

from __future__ import annotations

import click

from cyxwiz_tasks.cli.options import find_id, json_option, print_json
from cyxwiz_tasks.client import Client


@click.command(short_help="End jobs, wherever they are.")
@click.argument("ids", nargs=-1, required=True)
@click.option("--reason", default="", help="Kept in the record, and told to whoever waits.")
@json_option
def command(ids: tuple[str, ...], reason: str, as_json: bool) -> None:
    """End jobs, wherever they are. On one that has ended it changes nothing."""
    with Client() as client:
        found = [find_id(client, id) for id in ids]
        for id in found:
            client.cancel(id, reason)
            if not as_json:
                click.echo(f"{id} cancelled")
    if as_json:
        print_json({"cancelled": found})
