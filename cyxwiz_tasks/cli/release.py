"""`cyxwiz release ID...`."""

from __future__ import annotations

import click

from cyxwiz_tasks.cli.options import find_id, json_option, print_json
from cyxwiz_tasks.client import Client


@click.command(short_help="Put held jobs back into the queue.")
@click.argument("ids", nargs=-1, required=True)
@json_option
def command(ids: tuple[str, ...], as_json: bool) -> None:
    """Put held jobs back into the queue, with fresh tries: what was before does not count any more."""
    with Client() as client:
        found = [find_id(client, id) for id in ids]
        for id in found:
            client.release(id)
            if not as_json:
                click.echo(f"{id} released")
    if as_json:
        print_json({"released": found})
