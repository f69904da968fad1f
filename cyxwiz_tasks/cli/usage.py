"""`cyxwiz usage`."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cyxwiz_tasks.cli.options import json_option, print_json
from cyxwiz_tasks.client import Client


@click.command(short_help="Show who has how much of the cluster.")
@json_option
def command(as_json: bool) -> None:
    """Show what each project, and each owner in it, has of the cluster. Whose BEFORE + NOW over WEIGHT is lowest goes
    next.

    BEFORE: the mean share of the cluster, in which recent times count most. NOW: what runs.
    """
    with Client() as client:
        rows = client.usage()
    print_json(rows) if as_json else _show(rows, Console())


def _show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("PROJECT", "OWNER", "BEFORE", "NOW", "WEIGHT", "RUNNING", "WAITING"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        limits = row.get("limits") or {}
        table.add_row(
            Text(row["project"] or "-" if row["owner"] is None else ""),
            Text("" if row["owner"] is None else row["owner"] or "-"),
            f"{row['past']:.1%}",
            f"{row['present']:.1%}",
            f"{row['weight']:g}",
            _of(row["running"], limits.get("running")),
            _of(row["waiting"], limits.get("waiting")),
        )
    console.print(table if rows else "nobody has used the cluster yet: `cyxwiz submit` sends a job")


def _of(count: int, limit: int | None) -> str:
    return f"{count}" if limit is None else f"{count}/{limit}"
