"""Nodes as a table."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cyxwiz_tasks.cli.durations import show_seconds
from cyxwiz_tasks.cli.job_table import PIPED, WIDE
from cyxwiz_tasks.opening_hours import OpeningHours, show_opening
from cyxwiz_tasks.quantities import show_size

COLOURS = {"up": "green", "suspect": "yellow", "lost": "red", "left": "dim"}


#: what a node is called, does and has, in any case; the rest where it says something, and where there is room
_ALWAYS = ("NODE", "STATE", "GPUS", "CPUS", "RAM", "JOBS", "SEEN")
#: columns of text that may go over several lines
_LONG = ("GPUS", "LABELS", "TAKES")


def show_nodes(rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each node: what it has, and how much of it is taken. On a narrow terminal without what is alike for
    all.
    """
    if not rows:
        console.print("no nodes: start one with `cyxwiz worker`")
        return
    if not console.is_terminal:
        console.width = max(console.width, PIPED)  # a program that reads this gets each node in one line
    cells = [_cells(row) for row in rows]
    chosen = [title for title in cells[0] if title in _ALWAYS or _says_something(title, cells, console.width < WIDE)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in chosen:
        table.add_column(title, no_wrap=title not in _LONG, overflow="fold")
    for row in cells:
        table.add_row(*(row[title] for title in chosen))
    console.print(table)


def _cells(row: dict[str, Any]) -> dict[str, str | Text]:
    can = row.get("capability") or {}
    labels = can.get("labels") or row.get("labels") or {}
    return {
        "NODE": Text(str(row.get("name") or row.get("id"))),
        "STATE": _state(row),
        "GPUS": Text(_gpus(can.get("gpus") or [])),
        "CPUS": str(can.get("cpu_cores") or ""),
        "RAM": show_size(can["ram_bytes"]) if can.get("ram_bytes") else "",
        "JOBS": f"{row['assigned'] + row['running']}/{row['slots']}",
        "TORCH": str(can.get("torch") or ""),
        "LABELS": Text(" ".join(f"{key}={value}" for key, value in labels.items())),
        "SEEN": _seen(row),
        "TAKES": Text(can.get("accept") or "all"),
    }


def _says_something(title: str, cells: list[dict[str, str | Text]], is_narrow: bool) -> bool:
    values = {str(row[title]) for row in cells}
    if title == "TORCH":
        return not is_narrow or len(values) > 1
    return values not in ({""}, {"all"})


def _gpus(gpus: list[dict[str, Any]]) -> str:
    names = Counter(
        f"{gpu['model']} {show_size(gpu['memory_bytes'])}" + (" (fake)" if gpu.get("fake") else "") for gpu in gpus
    )
    return ", ".join(f"{count}x {name}" for name, count in names.items()) or "none"


def _state(row: dict[str, Any]) -> Text:
    """With how long a quarantine still lasts, or how long a drain leaves what still runs; drained: nothing does."""
    state, cordon, seconds = str(row.get("state") or ""), row.get("cordon"), row.get("cordon_seconds_left")
    if not cordon:
        if opening := _opening(row):
            return Text(f"{state}, opens {opening}", style="yellow")
        return Text(state, style=COLOURS.get(state, ""))
    if cordon == "draining" and not row["assigned"] + row["running"]:
        cordon, seconds = "drained", None
    left = f" {show_seconds(seconds)}" if seconds is not None and seconds > 0 else ""
    return Text(f"{state}, {cordon}{left}", style="yellow")


def _opening(row: dict[str, Any]) -> str | None:
    """When a node that is up and outside its hours opens, in its own time."""
    can = row.get("capability") or {}
    if row.get("state") != "up" or not can.get("hours"):
        return None
    try:
        opening = OpeningHours.parse(can["hours"], can.get("timezone") or "UTC").opens_at(datetime.now(UTC))
    except ValueError:
        # This machine does not know the time zone; the scheduler did.
        return str(can["hours"])
    return show_opening(opening) if opening is not None else None


def _seen(row: dict[str, Any]) -> str:
    if row.get("state") == "up":
        return "now"
    return f"{show_seconds(row['seen_seconds_ago'])} ago"
