"""Jobs as a table, and one job as a page."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cyxwiz_tasks.cli.durations import show_between, show_since
from cyxwiz_tasks.cli.values import show_mapping

_TITLES = ("ID", "STATE", "JOB", "NODE", "PRIORITY", "TRIES", "AGE", "RAN")
#: columns of a terminal from which on ids are shown whole
WIDE = 110
#: columns of what is no terminal
PIPED = 240
#: characters of an id that tell jobs apart; `cyxwiz why` and the others take them
_ID_END = 12
COLOURS = {
    "pending": "yellow",
    "assigned": "cyan",
    "running": "blue",
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
    "held": "red",
}


def show_jobs(rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each job. What is alike for all is left out, and on a narrow terminal the beginning of ids, which is
    their time: so there is room for names, which say the parameters of an array's jobs.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    short = console.is_terminal and console.width < WIDE
    titles = [title for title in _TITLES if title not in ("PRIORITY", "TRIES") or not short or _differs(rows, title)]
    for title in titles:
        table.add_column(title, no_wrap=title != "JOB", overflow="fold")
    for row in rows:
        cells: dict[str, str | Text] = {
            "ID": str(row["id"])[-_ID_END:] if short else str(row["id"]),
            "STATE": state_text(row),
            "JOB": Text(str(row.get("name") or row.get("task") or "")),
            "NODE": Text(str(row.get("node") or "")),
            "PRIORITY": str(row.get("priority") or ""),
            "TRIES": str(row.get("attempts") or 0),
            "AGE": show_since(row.get("submitted_at") or row.get("accepted_at")),
            "RAN": show_between(row.get("started_at"), row.get("ended_at")),
        }
        table.add_row(*(cells[title] for title in titles))
    if not console.is_terminal:
        console.width = PIPED  # a program that reads this gets each job in one line
    console.print(table)


def _differs(rows: list[dict[str, Any]], title: str) -> bool:
    """Whether a column says something that is not so for nearly every job."""
    if title == "TRIES":
        return any((row.get("attempts") or 0) > 1 for row in rows)
    return any(row.get("priority") not in (None, "normal") for row in rows)


def state_text(row: dict[str, Any]) -> Text:
    state = str(row["state"])
    cause = f" ({row['cause']})" if row.get("cause") and state in ("failed", "held") else ""
    return Text(state + cause, style=COLOURS.get(state, ""))


def show_job(record: dict[str, Any], console: Console) -> None:
    """Everything that the record knows of one job, the most wanted first."""
    page = Table.grid(padding=(0, 2))
    page.add_column(style="bold", no_wrap=True)
    page.add_column(overflow="fold")
    for title, value in _lines(record):
        if value:
            page.add_row(title, value)
    console.print(page)
    attempts = record.get("attempts") or []
    if attempts:
        console.print()
        console.print(_attempts(attempts, record.get("members") or []))
    if record.get("traceback"):
        console.print()
        console.print(Text(str(record["traceback"]).rstrip(), style="red"))


def _lines(record: dict[str, Any]) -> list[tuple[str, Any]]:
    result = record.get("result")
    return [
        ("job", str(record["id"])),
        ("name", Text(str(record.get("name") or ""))),
        ("task", Text(str(record.get("task") or ""))),
        ("state", state_text(record)),
        ("message", Text(str(record.get("message") or ""))),
        ("cancelled", Text(str(record.get("cancel_reason") or ""))),
        ("priority", str(record.get("priority") or "")),
        ("owner", Text(" / ".join(str(record[key]) for key in ("owner", "project") if record.get(key)))),
        ("needs", Text(show_mapping(record.get("resources") or {}))),
        ("needs since", Text(show_mapping(record.get("learned") or {}))),
        ("after", Text("\n".join(_dependency(row) for row in record.get("after") or []))),
        ("array", f"{record['array_id']} [{record['array_index']}]" if record.get("array_id") else ""),
        ("deadline", str(record.get("deadline_at") or "")),
        ("node", Text(str(record.get("node") or ""))),
        ("score", Text(_score(record.get("attempts") or []))),
        ("submitted", _ago(record.get("submitted_at"))),
        ("waited", show_between(record.get("accepted_at"), record.get("started_at") or record.get("ended_at"))),
        ("ran", show_between(record.get("started_at"), record.get("ended_at"))),
        ("result", Text(show_mapping(result) if isinstance(result, dict) else "" if result is None else str(result))),
    ]


def _score(attempts: list[dict[str, Any]]) -> str:
    """Why the last attempt is where it is: the score, its parts, and the next best nodes."""
    scores = attempts[-1].get("scores") if attempts else None
    if not scores:
        return ""
    parts = ", ".join(f"{name} {value:.2f}" for name, value in scores["parts"].items())
    others = ", ".join(f"{name} {value:.2f}" for name, value in scores["next"])
    return f"{scores['score']:.2f} ({parts})" + (f"; next: {others}" if others else "")


def _dependency(row: dict[str, Any]) -> str:
    return f"{row['id']}:{row['kind']} ({row['state'] or 'forgotten'}{', met' if row['met_at'] else ''})"


def _ago(time: Any) -> str:
    return f"{show_since(time)} ago" if time else ""


def _attempts(attempts: list[dict[str, Any]], members: list[dict[str, Any]]) -> Table:
    """Each attempt, and of a job on several nodes below it each member."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("ATTEMPT", "STATE", "NODE", "DEVICE", "RAN", "MESSAGE"):
        table.add_column(title)
    for attempt in attempts:
        table.add_row(
            str(attempt.get("number", "")),
            state_text(attempt),
            Text(str(attempt.get("node") or "")),
            str(attempt.get("device") or ""),
            show_between(attempt.get("started_at"), attempt.get("ended_at")),
            Text(str(attempt.get("message") or "")),
        )
        for member in members:
            if member["attempt"] == attempt.get("number"):
                table.add_row(
                    f"  rank {member['rank']}",
                    Text(str(member.get("cause") or member.get("outcome") or "")),
                    Text(str(member.get("node") or "")),
                    str(member.get("device") or ""),
                    show_between(member.get("started_at"), member.get("ended_at")),
                    Text((member.get("message") or "").partition("\n")[0]),
                )
    return table
