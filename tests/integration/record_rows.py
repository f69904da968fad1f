"""Every row of a record and of its model in memory, in one form, and what differs between two values."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from tests.simulation.memory_db.tables import Tables

#: the model reads another clock than the database; moments here are either close or an hour apart
TOLERANCE_SECONDS = 20.0

_EMPTY = "metrics", "events", "attempts", "jobs", "devices", "nodes"
_JOB = (
    *("id", "seq", "envelope", "accepted_at", "not_before", "expires_at", "deadline_at", "state"),
    *("cause", "message", "exception", "traceback", "result", "node_id", "current_token", "attempts", "assigned_at"),
    *("started_at", "ended_at", "first_started_at", "learned", "cancel_requested_at", "cancel_reason"),
)
_ATTEMPT = (
    *("token", "job_id", "node_id", "number", "epoch", "assigned_at", "lease_until", "state", "cause", "message"),
    *("exit_code", "pid", "device", "started_at", "ended_at"),
)
_NODE = (
    *("id", "name", "hostname", "incarnation", "capability", "state", "reputation", "up_seconds", "telemetry"),
    *("cordon", "cordon_until", "cordon_reason", "faults", "quarantines", "tried"),
)
_EVENT = ("epoch", "actor", "from_state", "to_state", "job_id", "node_id", "attempt", "token", "cause", "detail")
_METRIC = ("job_id", "attempt", "at", "values")
_TABLES = {
    "jobs": (_JOB, "id"),
    "attempts": (_ATTEMPT, "token"),
    "nodes": (_NODE, "id"),
    # A batch has no order within itself; the events of one job or one node have.
    "events": (_EVENT, "coalesce(job_id, node_id), seq"),
    "metrics": (_METRIC, "job_id, attempt, seq"),
}


def empty(connection: Connection) -> int:
    """Take every row out of a record; the epoch that leads."""
    with connection.begin():
        for table in _EMPTY:
            connection.execute(text(f"DELETE FROM {table}"))
        return int(connection.scalar(text("SELECT epoch FROM leadership")))


def next_epoch(connection: Connection) -> int:
    """What the next leader does to the record."""
    with connection.begin():
        return int(connection.scalar(text("UPDATE leadership SET epoch = epoch + 1 RETURNING epoch")))


def rows_of_record(connection: Connection) -> dict[str, Any]:
    with connection.begin():
        return {
            table: [
                {name: _plain(value) for name, value in row._mapping.items()}
                for row in connection.execute(text(f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}"))
            ]
            for table, (columns, order) in _TABLES.items()
        }


def rows_of_model(tables: Tables) -> dict[str, Any]:
    return {
        "jobs": [_row(job, _JOB) for job in sorted(tables.jobs.values(), key=lambda row: row.id)],
        "attempts": [_row(row, _ATTEMPT) for _, row in sorted(tables.attempts.items())],
        "nodes": [_row(node, _NODE) for node in sorted(tables.nodes.values(), key=lambda row: row.id)],
        "events": [_row(one, _EVENT) for one in sorted(tables.events, key=lambda row: row.job_id or row.node_id or "")],
        "metrics": [_row(one, _METRIC) for one in sorted(tables.metrics, key=lambda row: (row.job_id, row.attempt))],
    }


def differences(real: Any, model: Any, where: str = "") -> list[str]:
    """Where two values differ, one line each; moments and other numbers with a fraction may be a little apart."""
    if dataclasses.is_dataclass(real) or hasattr(real, "_asdict"):
        names = [one.name for one in dataclasses.fields(real)] if dataclasses.is_dataclass(real) else real._fields
        real, model = ({name: getattr(one, name, None) for name in names} for one in (real, model))
    match real, model:
        case dict(), dict() if real.keys() == model.keys():
            return [line for name in real for line in differences(real[name], model[name], f"{where}.{name}")]
        case list() | tuple(), list() | tuple() if len(real) == len(model):
            pairs = enumerate(zip(real, model, strict=True))
            return [line for at, (one, other) in pairs for line in differences(one, other, f"{where}[{at}]")]
        case float(), float() | int() if abs(real - model) < TOLERANCE_SECONDS:
            return []
        case _ if real == model:
            return []
    return [f"{where}: the record has {real!r}, the model {model!r}"]


def _row(row: Any, columns: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in columns}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.timestamp()
    return str(value) if type(value).__name__ == "UUID" else value
