"""Client -> the leading scheduler: what only it can do or knows. It answers with a `Reply` (queries.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from cyxwiz_tasks.protocol.message import Message, Uuid
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority


class Cancel(Message):
    kind: Literal["cancel"] = "cancel"
    job: str
    reason: str = ""
    reply_to: str | None = None


class CancelArray(Message):
    """End what has not ended of an array."""

    kind: Literal["cancel_array"] = "cancel_array"
    array: Uuid
    reason: str = ""
    reply_to: str | None = None


class AddSchedule(Message):
    """Send a job again and again: at each moment that `cron` names in a timezone."""

    kind: Literal["add_schedule"] = "add_schedule"
    #: also the id in `message`, in whose place each job gets its own
    id: Uuid
    name: str
    cron: str
    timezone: str = "UTC"
    #: whether moments that passed while no scheduler ran are made up for, by one job
    catch_up: bool = True
    #: the Celery message of the jobs, as it would lie in the inbox
    message: str
    reply_to: str | None = None


class RemoveSchedule(Message):
    kind: Literal["remove_schedule"] = "remove_schedule"
    name: str
    reply_to: str | None = None


class Why(Message):
    """Explain where a job stands; with `resources` and no job, a dry run for a job of this owner."""

    kind: Literal["why"] = "why"
    job: str | None = None
    resources: Resources | None = None
    owner: str = ""
    project: str = ""
    priority: Priority = Priority.NORMAL
    reply_to: str | None = None


class Release(Message):
    """Put a held job back into the queue."""

    kind: Literal["release"] = "release"
    job: str
    reply_to: str | None = None


class Drain(Message):
    """Give a node, by name or id, no new work, and end what it runs in `deadline_seconds`: 0 at once, None never."""

    kind: Literal["drain"] = "drain"
    node: str
    deadline_seconds: float | None = 0.0
    reason: str = ""
    reply_to: str | None = None


class Undrain(Message):
    """Let a node that drains, or that is in quarantine, take work again."""

    kind: Literal["undrain"] = "undrain"
    node: str
    reply_to: str | None = None


class SetLimits(Message):
    """What an owner may have from now on: weight, running, waiting, per_minute; None: without a limit."""

    kind: Literal["set_limits"] = "set_limits"
    owner: str
    changes: dict[str, float | None]
    reply_to: str | None = None


class SetQuota(Message):
    """What a project owns, lends and borrows from now on, as `broker.scheduler.quotas.Quota`; None: nothing at all."""

    kind: Literal["set_quota"] = "set_quota"
    project: str
    changes: dict[str, float | None] | None
    reply_to: str | None = None


class Quotas(Message):
    """What do projects own, and what do they hold?"""

    kind: Literal["quotas"] = "quotas"
    reply_to: str | None = None


class Usage(Message):
    """Who has how much of the cluster?"""

    kind: Literal["usage"] = "usage"
    reply_to: str | None = None


Command = Annotated[
    Cancel
    | CancelArray
    | AddSchedule
    | RemoveSchedule
    | Why
    | Release
    | Drain
    | Undrain
    | SetLimits
    | Usage
    | SetQuota
    | Quotas,
    Field(discriminator="kind"),
]
COMMAND: TypeAdapter[Command] = TypeAdapter(Command)
