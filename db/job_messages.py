"""The Celery messages of jobs, as they were published: read to publish them again, replaced by newer ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from pydantic_core import from_json
from sqlalchemy import Connection, text

from db.rows import storable


@dataclass(frozen=True)
class StoredMessage:
    """The Celery message of a job, to publish it (again)."""

    headers: dict[str, Any]
    body: str
    properties: dict[str, Any]

    @classmethod
    def read(cls, envelope: str) -> Self:
        """Raises ValueError for what is no message."""
        try:
            message = from_json(envelope)
        except ValueError:
            # Half a surrogate pair, which `json` does not mind.
            message = json.loads(envelope)
        if not (isinstance(message, dict) and isinstance(message.get("headers"), dict)):
            raise ValueError("it is no Celery message")
        return cls(message.pop("headers"), str(message.pop("body", "")), message)

    @property
    def envelope(self) -> str:
        """The message as one JSON text."""
        return storable(self.properties | {"headers": self.headers, "body": self.body})


_MESSAGES = text("SELECT id::text, envelope FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))")


def messages(tx: Connection, ids: Sequence[str]) -> dict[str, StoredMessage]:
    """The messages of these jobs, by id; one that cannot be read has no entry."""
    found: dict[str, StoredMessage] = {}
    for job_id, envelope in tx.execute(_MESSAGES, {"ids": list(ids)}):
        with suppress(ValueError, RecursionError):
            found[job_id] = StoredMessage.read(envelope)
    return found


_REPLACE = text(
    """
    UPDATE jobs SET envelope = :envelope,
        not_before = coalesce(statement_timestamp() + make_interval(secs => :after_seconds), :not_before)
    WHERE id = CAST(:id AS uuid) AND state IN ('pending', 'assigned', 'running', 'held')"""
)


def replace_message(
    tx: Connection,
    job_id: str,
    message: StoredMessage,
    not_before: datetime | None,
    after_seconds: float | None = None,
) -> bool:
    """Keep a newer message of a job that has not ended: a task that retries itself publishes one with its own id.

    It is to be placed `after_seconds` from now, by the database's clock, or without them not before a given moment.
    """
    values = {
        "id": job_id,
        "envelope": message.envelope,
        "not_before": not_before,
        "after_seconds": after_seconds,
    }
    return bool(tx.execute(_REPLACE, values).rowcount)
