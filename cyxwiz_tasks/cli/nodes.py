"""`cyxwiz nodes`."""

from __future__ import annotations

import click
from rich.console import Console

from cyxwiz_tasks.cli.node_table import show_nodes
from cyxwiz_tasks.cli.options import json_option, print_json
from cyxwiz_tasks.client import Client


@click.command(short_help="List nodes and what they can do.")
@json_option
def command(as_json: bool) -> None:
    """List nodes: what they have, and how much of it is taken."""
    with Client() as client:
        rows = client.nodes()
    print_json(rows) if as_json else show_nodes(rows, Console())
