"""Nodes: what they can do, whether they are there, and what they said last."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.states import Cause
from db.models import NODE_STATES, NodeState
from db.reports import check_ids
from db.rows import clean, readable, storable

#: the longest silence that still counts as time up, should a scheduler have been away meanwhile
UP_GAP_SECONDS = 60.0


@dataclass(frozen=True)
class Registration:
    """A node's word on itself. Raises ProtocolError if `node_id` is no UUID."""

    node_id: str
    name: str
    hostname: str
    incarnation: str
    capability: Capability

    def __post_init__(self) -> None:
        check_ids(self.node_id)


@dataclass(frozen=True)
class Registered:
    """`state_before` and `incarnation_before` are None for a node that nobody knew."""

    node_id: str
    state_before: NodeState | None
    incarnation_before: str | None
    reputation: float
    up_seconds: float


# A node that registers again under the same incarnation only came back to the broker: no event. `old` takes no lock: it
# is read after the insertion, and then a lock would find the row changed by this very statement, and skip it.
_REGISTER = text(
    """
    WITH old AS (
        SELECT id, state, incarnation FROM nodes WHERE id = CAST(:id AS uuid)
    ), kept AS (
        INSERT INTO nodes AS n (id, name, hostname, incarnation, state, capability, slots, region, labels,
            first_seen_at, registered_at, last_seen_at)
        VALUES (CAST(:id AS uuid), :name, :hostname, :incarnation, 'up', CAST(:capability AS jsonb), :slots, :region,
            CAST(:labels AS jsonb), statement_timestamp(), statement_timestamp(), statement_timestamp())
        ON CONFLICT (id) DO UPDATE SET name = excluded.name, hostname = excluded.hostname,
            incarnation = excluded.incarnation, state = 'up', capability = excluded.capability, slots = excluded.slots,
            region = excluded.region, labels = excluded.labels, registered_at = excluded.registered_at,
            last_seen_at = excluded.last_seen_at, left_at = NULL
        RETURNING id, reputation, up_seconds
    ), given AS (
        SELECT * FROM json_to_recordset(CAST(:gpus AS json)) AS given (
            index smallint, model text, memory_bytes bigint, compute_capability text, driver text, cuda text,
            uuid text, fake boolean
        )
    ), removed AS (
        DELETE FROM devices WHERE node_id = CAST(:id AS uuid) AND index NOT IN (SELECT index FROM given)
    ), added AS (
        INSERT INTO devices (node_id, index, model, memory_bytes, compute_capability, driver, cuda, uuid, fake)
        SELECT CAST(:id AS uuid), given.* FROM given
        ON CONFLICT (node_id, index) DO UPDATE SET model = excluded.model, memory_bytes = excluded.memory_bytes,
            compute_capability = excluded.compute_capability, driver = excluded.driver, cuda = excluded.cuda,
            uuid = excluded.uuid, fake = excluded.fake
    ), logged AS (
        INSERT INTO events (node_id, epoch, from_state, to_state, actor, detail)
        SELECT kept.id, :epoch, old.state, 'up', 'node', jsonb_build_object('incarnation', :incarnation ::text)
        FROM kept LEFT JOIN old ON true
        WHERE old.state IS DISTINCT FROM 'up' OR old.incarnation <> :incarnation
    )
    SELECT kept.id::text, old.state, old.incarnation, reputation::float8, up_seconds FROM kept LEFT JOIN old ON true"""
)


def register(tx: Connection, epoch: int, registration: Registration) -> Registered:
    """Record a node, or what is new of it, as up; its devices become exactly those that it has now."""
    capability = registration.capability.model_dump(mode="json")
    values = {
        "id": registration.node_id,
        "name": clean(registration.name),
        "hostname": clean(registration.hostname),
        "incarnation": clean(registration.incarnation),
        "capability": storable(capability),
        "slots": registration.capability.slots,
        "region": clean(registration.capability.region),
        "labels": storable(capability["labels"]),
        # A GPU that a faulty driver lists twice would be one row twice in a statement.
        "gpus": storable(list({gpu["index"]: gpu for gpu in capability["gpus"]}.values())),
        "epoch": epoch,
    }
    row = tx.execute(_REGISTER, values).one()
    return Registered(row[0], NodeState(row[1]) if row[1] else None, *row[2:])


_MARK = text(
    """
    WITH old AS (
        SELECT id, state, incarnation FROM nodes
        WHERE id = CAST(:id AS uuid) AND state <> :state AND state = ANY(:sources) FOR UPDATE
    ), moved AS (
        UPDATE nodes SET state = :state, left_at = CASE WHEN :gone THEN statement_timestamp() END
        FROM old WHERE nodes.id = old.id
    )
    INSERT INTO events (node_id, epoch, from_state, to_state, cause, actor, detail)
    SELECT id, :epoch, state, :state, :cause, :actor, jsonb_build_object('incarnation', incarnation) FROM old"""
)


def mark(tx: Connection, epoch: int, node_id: str, state: NodeState, cause: Cause | None = None) -> bool:
    """Move a node to a state, and whether that changed anything. From lost or left only `register` brings it back."""
    gone = state in (NodeState.LOST, NodeState.LEFT)
    sources = NODE_STATES if gone else (NodeState.UP, NodeState.SUSPECT)
    values = {
        "id": node_id,
        "state": str(state),
        "sources": [str(source) for source in sources],
        "gone": gone,
        "cause": cause and str(cause),
        "actor": "node" if state == NodeState.LEFT else "scheduler",
        "epoch": epoch,
    }
    return bool(tx.execute(_MARK, values).rowcount)


_SEEN = text(
    """
    UPDATE nodes SET telemetry = coalesce(given.telemetry, nodes.telemetry), last_seen_at = statement_timestamp(),
        up_seconds = up_seconds + least(extract(epoch FROM statement_timestamp() - last_seen_at)::float8, :gap_seconds)
    FROM json_to_recordset(CAST(:rows AS json)) AS given (id uuid, telemetry jsonb)
    WHERE nodes.id = given.id AND state IN ('up', 'suspect')"""
)


def seen(tx: Connection, telemetry: Mapping[str, dict[str, Any] | None]) -> int:
    """Note that these nodes beat, and what they measured (None: nothing new); how many of them are not lost or left."""
    rows = [{"id": node_id, "telemetry": values} for node_id, values in telemetry.items()]
    return tx.execute(_SEEN, {"rows": storable(rows), "gap_seconds": UP_GAP_SECONDS}).rowcount


_RATE = text(
    """
    UPDATE nodes SET reputation = given.reputation
    FROM json_to_recordset(CAST(:rows AS json)) AS given (id uuid, reputation real) WHERE nodes.id = given.id"""
)


def rate(tx: Connection, reputations: Mapping[str, float]) -> int:
    """Keep nodes' reputations, 0 to 1; how many nodes are known."""
    rows = [{"id": node_id, "reputation": value} for node_id, value in reputations.items()]
    return tx.execute(_RATE, {"rows": storable(rows)}).rowcount


_FIND = text(
    """
    SELECT id, name, hostname, incarnation, state, slots, reputation::float8 AS reputation, region, labels, capability,
        telemetry, up_seconds, first_seen_at, registered_at, last_seen_at, left_at,
        extract(epoch FROM statement_timestamp() - last_seen_at)::float8 AS seen_seconds_ago, work.*,
        (SELECT coalesce(json_agg(to_jsonb(devices) - 'node_id' ORDER BY index), '[]') FROM devices
            WHERE node_id = nodes.id) AS devices
    FROM nodes CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE attempts.state = 'assigned') AS assigned,
            count(*) FILTER (WHERE attempts.state = 'running') AS running
        FROM attempts WHERE node_id = nodes.id AND attempts.state IN ('assigned', 'running')
    ) AS work
    WHERE state = ANY(:states) AND (CAST(:name AS text) IS NULL OR name = :name OR id::text = :name)
    ORDER BY name, first_seen_at LIMIT :limit"""
)


def find(
    tx: Connection,
    states: Collection[NodeState] | None = None,
    name: str | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Nodes by name, ready for JSON, each with its devices, its newest telemetry and how many attempts it has.

    `name` is a node's name, which several may bear, or its id.
    """
    wanted: Sequence[str] = [str(state) for state in states or NODE_STATES]
    return [readable(row) for row in tx.execute(_FIND, {"states": wanted, "name": clean(name), "limit": limit})]
