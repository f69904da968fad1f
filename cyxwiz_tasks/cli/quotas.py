"""`cyxwiz quotas`."""

from __future__ import annotations

import click
from rich.console import Console

from cyxwiz_tasks.cli.options import json_option, print_json
from cyxwiz_tasks.cli.quota_table import show_quotas
from cyxwiz_tasks.client import Client


@click.command(short_help="Show what projects own, hold and borrow.")
@json_option
def command(as_json: bool) -> None:
    """Show what each project owns of the cluster, what its jobs hold, and what of that is borrowed."""
    with Client() as client:
        rows = client.quotas()
    print_json(rows) if as_json else show_quotas(rows, Console())
