"""Quotas as a table, and one as a sentence."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_quotas(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("PROJECT", "WEIGHT", "GPUS", "LENDS", "BORROWS", "CPUS", "LENDS", "BORROWS"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row["project"] or "-"),
            f"{row['weight']:g}",
            f"{row['held']['gpus']}/{row['gpus']}",
            _limit(row["lend_gpus"]),
            _borrowed(row["borrowed"]["gpus"], row["borrow_gpus"]),
            f"{row['held']['cpus']}/{row['cpus']}",
            _limit(row["lend_cpus"]),
            _borrowed(row["borrowed"]["cpus"], row["borrow_cpus"]),
        )
    console.print(table if rows else "there are no quotas: `cyxwiz quota set PROJECT --gpus N` makes one")


def sentence(row: dict[str, Any]) -> str:
    gpus = "1 GPU" if row["gpus"] == 1 else f"{row['gpus']} GPUs"
    return (
        f"project {row['project'] or '-'} owns {gpus} and {row['cpus']} cores, and holds "
        f"{row['held']['gpus']} and {row['held']['cpus']}; weight {row['weight']:g}"
    )


def _limit(limit: int | None) -> str:
    return "all" if limit is None else f"{limit}"


def _borrowed(amount: int, limit: int | None) -> str:
    return f"{amount}" if limit is None else f"{amount}/{limit}"
