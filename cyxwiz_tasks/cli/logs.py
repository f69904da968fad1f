"""`cyxwiz logs ID`."""

from __future__ import annotations

import click

from cyxwiz_tasks.broker_connection import reached
from cyxwiz_tasks.cli.options import find_id
from cyxwiz_tasks.client import Client
from cyxwiz_tasks.protocol.names import log_key


@click.command(short_help="Show what a job writes.")
@click.argument("id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--rank", type=click.IntRange(0), default=0, help="Of a job on several nodes, which member.")
def command(id: str, follow: bool, rank: int) -> None:
    """Show what a job and its child processes write to their output."""
    with Client() as client:
        found, silent = find_id(client, id), True
        if follow:
            with reached(client.broker_url):
                has_begun = bool(client.connection.exists(log_key(found, rank)))
            if not has_begun:
                client.job(found)  # there may be no such job: its end would be waited for for ever
        for text in client.get(found).logs(follow=follow, rank=rank):
            click.echo(text, nl=False)
            silent = False
        if silent:
            state = client.job(found)["state"]  # there may be no such job
            click.echo(f"Job {found} is {state} and has no output: it wrote none, or too long ago.", err=True)
