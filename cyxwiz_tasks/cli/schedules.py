"""`cyxwiz schedules`."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cyxwiz_tasks.cli.options import json_option, print_json
from cyxwiz_tasks.client import Client


@click.command(short_help="List schedules.")
@json_option
def command(as_json: bool) -> None:
    """List schedules: when each is due next, and the job that it sent last."""
    with Client() as client:
        rows = client.schedules()
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("NAME", "CRON", "TIMEZONE", "NEXT", "LAST", "LAST JOB"):
        table.add_column(title)
    for row in rows:
        words = (row["name"], row["cron"], row["timezone"], row["next_at"], row["last_at"], row["last_job_id"])
        table.add_row(*(Text(str(word or "")) for word in words))
    refused = [row["name"] for row in rows if row.get("refused")]
    Console().print(table if rows else "no schedules: `cyxwiz schedule add` makes one")
    if refused:
        told = f"refused by the limits of their owners, and tried again at NEXT: {', '.join(refused)}"
        Console().print(Text(told, style="yellow"), soft_wrap=True)
