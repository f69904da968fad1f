"""Client -> any scheduler: questions to the record; and the form of every answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue

from cyxwiz_tasks.protocol.message import Message


class Query(Message):
    """A question to the record: `name` is one of broker/scheduler/queries.py, `arguments` its keywords."""

    name: Literal["jobs", "job", "array", "schedules", "nodes", "events", "metrics", "status"]
    arguments: dict[str, Any] = Field(default_factory=dict)
    reply_to: str


class Reply(Message):
    """An answer: `value`, or the class name in `cyxwiz_tasks.errors` and the message of what went wrong."""

    value: JsonValue = None
    error_type: str | None = None
    error: str | None = None
