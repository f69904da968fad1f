"""`cyxwiz undrain NODE`."""

from __future__ import annotations

import click

from cyxwiz_tasks.cli.options import json_option, print_json
from cyxwiz_tasks.client import Client


@click.command(short_help="Let a node take work again.")
@click.argument("node")
@json_option
def command(node: str, as_json: bool) -> None:
    """Let a node, by name or id, take work again that was drained, or is in quarantine."""
    with Client() as client:
        row = client.undrain(node)
    print_json(row) if as_json else click.echo(f"node {row['name']} ({row['id'][:8]}) takes work again")
