"""`cyxwiz cancel ID...`."""

from __future__ import annotations

import click

from cyxwiz_tasks.cli.options import find_array, find_id, json_option, print_json
from cyxwiz_tasks.client import Client
from cyxwiz_tasks.errors import InvalidJob

#: what had ended before, by Celery's name of its state
_ENDED = {
    "SUCCESS": "has completed already: nothing is changed",
    "FAILURE": "has failed already: nothing is changed",
}


@click.command(short_help="End jobs, wherever they are.")
@click.argument("ids", nargs=-1)
@click.option("--array", "arrays", multiple=True, metavar="ID", help="All jobs of an array.")
@click.option("--reason", default="", help="Kept in the record, and told to whoever waits.")
@json_option
def command(ids: tuple[str, ...], arrays: tuple[str, ...], reason: str, as_json: bool) -> None:
    """End jobs, wherever they are. On one that has ended it changes nothing."""
    if not ids and not arrays:
        raise InvalidJob("ids", "are missing", "Write cyxwiz cancel JOB..., or --array ID")
    with Client() as client:
        for array in [find_array(client, text) for text in arrays]:
            count = client.cancel_array(array, reason)
            if not as_json:
                click.echo(f"{array}: {count} jobs cancelled")
        found = [find_id(client, id) for id in ids]
        for id in found:
            state = client.cancel(id, reason)["state"]
            if not as_json:
                click.echo(f"{id} {_ENDED.get(state, 'cancelled')}")
    if as_json:
        print_json({"cancelled": found})
