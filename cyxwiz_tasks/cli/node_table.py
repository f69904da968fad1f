"""Nodes as a table."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cyxwiz_tasks.cli.durations import show_seconds
from cyxwiz_tasks.opening_hours import OpeningHours, show_opening
from cyxwiz_tasks.quantities import show_size

COLOURS = {"up": "green", "suspect": "yellow", "lost": "red", "left": "dim"}


def show_nodes(rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each node: what it has, and how much of it is taken."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    has_conditions = any((row.get("capability") or {}).get("accept") for row in rows)
    for title in ("NODE", "STATE", "GPUS", "CPUS", "RAM", "JOBS", "TORCH", "LABELS", "SEEN"):
        table.add_column(title, no_wrap=title not in ("GPUS", "LABELS"))
    if has_conditions:
        table.add_column("TAKES")
    for row in rows:
        can = row.get("capability") or {}
        labels = can.get("labels") or row.get("labels") or {}
        table.add_row(
            Text(str(row.get("name") or row.get("id"))),
            _state(row),
            Text(_gpus(can.get("gpus") or [])),
            str(can.get("cpu_cores") or ""),
            show_size(can["ram_bytes"]) if can.get("ram_bytes") else "",
            f"{row['assigned'] + row['running']}/{row['slots']}",
            str(can.get("torch") or ""),
            Text(" ".join(f"{key}={value}" for key, value in labels.items())),
            _seen(row),
            *([Text(can.get("accept") or "all")] if has_conditions else []),
        )
    console.print(table if rows else "no nodes: start one with `cyxwiz worker`")


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
