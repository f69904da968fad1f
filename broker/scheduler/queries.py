"""Read queries: one function per name in `protocol.queries.Query`, answered from the record, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Connection

from broker.scheduler.scheduling import waits_for_limits
from cyxwiz_tasks.errors import InvalidJob, NotFound, ProtocolError
from cyxwiz_tasks.protocol.queries import Query
from cyxwiz_tasks.states import JobState
from db import arrays, dependencies, job_pages, schedules, status
from db.events import of_job, of_node
from db.metrics import of_job as metrics_of_job
from db.models import NodeState
from db.nodes import find as find_nodes

LIMIT_ROWS = 10_000

State = TypeVar("State", bound=StrEnum)


def answer(tx: Connection, query: Query) -> Any:
    """The value for a query. Raises NotFound, InvalidJob, and ProtocolError for arguments that it does not have."""
    try:
        return _QUERIES[query.name](tx, **query.arguments)
    except TypeError as error:
        raise ProtocolError(f"query {query.name!r}: {error}") from None


def _jobs(
    tx: Connection,
    states: list[str] | None = None,
    owner: str | None = None,
    name: str | None = None,
    node: str | None = None,
    limit: int = 100,
    before: str | None = None,
    array: str | None = None,
    after_index: int = -1,
) -> list[dict[str, Any]]:
    """The newest first; `before` is the id of the last job of the page before. Those of an array by their indexes."""
    position = _job(tx, before)["seq"] if before is not None else None
    return job_pages.find(tx, _states(JobState, states), owner, name, node, _limit(limit), position, array, after_index)


def _job(tx: Connection, id: str) -> dict[str, Any]:
    """All of one job; `attempts` is the list of its attempts, the first one first, `after` what it comes after."""
    page = job_pages.get(tx, id)
    if page is None:
        raise NotFound(f"there is no job {id}: `cyxwiz jobs` lists what there is")
    attempts = page.pop("attempt_list")
    return page | {"attempts": attempts, "after": dependencies.of_job(tx, id)}


def _array(tx: Connection, id: str) -> dict[str, Any]:
    """An array, with `counts` of its jobs by state."""
    page = arrays.get(tx, id)
    if page is None:
        raise NotFound(f"there is no array {id}: `cyxwiz jobs --json` shows the array_id of jobs")
    return page


def _schedules(tx: Connection, name: str | None = None) -> list[dict[str, Any]]:
    """`refused`: whether the owner's limits refused the job of the last moment, which is then tried at `next_at`."""
    return [row | {"refused": waits_for_limits(row)} for row in schedules.find(tx, name)]


def _nodes(
    tx: Connection, states: list[str] | None = None, name: str | None = None, limit: int = LIMIT_ROWS
) -> list[dict[str, Any]]:
    return find_nodes(tx, _states(NodeState, states), name, _limit(limit))


def _events(
    tx: Connection, id: str | None = None, node: str | None = None, after: int = 0, limit: int = 1000
) -> list[dict[str, Any]]:
    """Of the job `id`, or of the node whose id is `node`."""
    if node is not None:
        return of_node(tx, node, after, _limit(limit))
    _job(tx, str(id))
    return of_job(tx, str(id), after, _limit(limit))


def _metrics(
    tx: Connection, id: str, attempt: int | None = None, after: int = 0, limit: int = LIMIT_ROWS
) -> list[dict[str, Any]]:
    """What a job reported, oldest first."""
    _job(tx, id)
    return metrics_of_job(tx, id, attempt, after, _limit(limit))


def _status(tx: Connection) -> dict[str, Any]:
    return {"jobs": job_pages.counts(tx), "nodes": status.node_counts(tx), "leader": status.leader(tx)}


_QUERIES: dict[str, Callable[..., Any]] = {
    "jobs": _jobs,
    "job": _job,
    "array": _array,
    "schedules": _schedules,
    "nodes": _nodes,
    "events": _events,
    "metrics": _metrics,
    "status": _status,
}


def _states(kind: type[State], names: list[str] | None) -> list[State] | None:
    try:
        return [kind(name) for name in names] if names else None
    except ValueError:
        raise InvalidJob("states", f"{names} are not all states", f"there are {', '.join(kind)}") from None


def _limit(limit: int) -> int:
    return max(1, min(int(limit), LIMIT_ROWS))
