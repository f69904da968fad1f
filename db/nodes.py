"""Nodes: what they can do, whether they are there, and what they said last."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.states import Cause
from db.models import NODE_STATES, Cordon, NodeState
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
    #: a node keeps them over its restarts: see `cordon`
    cordon: Cordon | None
    faults: int
    quarantines: int
    tried: bool


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
        RETURNING id, reputation, up_seconds, cordon, faults, quarantines, tried
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
    SELECT kept.id::text, old.state, old.incarnation, reputation::float8 AS reputation, up_seconds, cordon, faults,
        quarantines, tried
    FROM kept LEFT JOIN old ON true"""
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
    return Registered(
        row[0],
        NodeState(row[1]) if row[1] else None,
        row[2],
        row.reputation,
        row.up_seconds,
        Cordon(row.cordon) if row.cordon else None,
        row.faults,
        row.quarantines,
        row.tried,
    )


_MARK = text(
    """
    WITH old AS (
        SELECT id, state, incarnation FROM nodes
        WHERE id = ANY(CAST(:ids AS uuid[])) AND state <> :state AND state = ANY(:sources) ORDER BY id FOR UPDATE
    ), moved AS (
        UPDATE nodes SET state = :state, left_at = CASE WHEN :gone THEN statement_timestamp() END
        FROM old WHERE nodes.id = old.id
    )
    INSERT INTO events (node_id, epoch, from_state, to_state, cause, actor, detail)
    SELECT id, :epoch, state, :state, :cause, :actor,
        jsonb_strip_nulls(jsonb_build_object('incarnation', incarnation, 'message', CAST(:message AS text)))
    FROM old
    RETURNING node_id::text"""
)


def mark(
    tx: Connection,
    epoch: int,
    node_ids: Collection[str],
    state: NodeState,
    cause: Cause | None = None,
    message: str | None = None,
) -> set[str]:
    """Move nodes to a state; those that were in another. From lost or left only `register` brings them back.
    `message` is for their events.

    At once: when Redis was away, or a leader is new, it is all nodes that are late.
    """
    gone = state in (NodeState.LOST, NodeState.LEFT)
    sources = NODE_STATES if gone else (NodeState.UP, NodeState.SUSPECT)
    values = {
        "ids": list(node_ids),
        "state": str(state),
        "sources": [str(source) for source in sources],
        "gone": gone,
        "cause": cause and str(cause),
        "message": clean(message),
        "actor": "node" if state == NodeState.LEFT else "scheduler",
        "epoch": epoch,
    }
    return {row[0] for row in tx.execute(_MARK, values)}


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


_NOTE_TRIED = text("UPDATE nodes SET tried = true WHERE id = CAST(:id AS uuid)")


def note_tried(tx: Connection, node_id: str) -> bool:
    """A job has completed on a node; whether it is known."""
    return bool(tx.execute(_NOTE_TRIED, {"id": node_id}).rowcount)


# A person's word stands over the scheduler's: a node that drains is not put into quarantine.
_CORDON = text(
    """
    WITH old AS (
        SELECT id FROM nodes WHERE id = CAST(:id AS uuid) AND (cordon IS NULL OR :cordon = 'draining') FOR UPDATE
    ), moved AS (
        UPDATE nodes SET cordon = :cordon, cordon_reason = nullif(:reason, ''),
            cordon_until = statement_timestamp() + make_interval(secs => :seconds),
            quarantines = quarantines + CASE WHEN :cordon = 'quarantined' THEN 1 ELSE 0 END
        FROM old WHERE nodes.id = old.id
    )
    INSERT INTO events (node_id, epoch, actor, detail)
    SELECT id, :epoch, :actor, jsonb_strip_nulls(jsonb_build_object(
        'cordon', :cordon ::text, 'seconds', CAST(:seconds AS double precision), 'reason', nullif(:reason, '')))
    FROM old"""
)


def cordon(
    tx: Connection, epoch: int, node_id: str, cordon: Cordon, seconds: float | None = None, reason: str = ""
) -> bool:
    """Give a node no new work, and whether that changed anything: a quarantine changes nothing where it has a cordon.

    `seconds` from now, by the database's clock, is the end of a quarantine, or when what still runs on a node that
    drains is ended (None: never). The cordon stays with the node over its restarts, until `uncordon`.
    """
    values = {
        "id": node_id,
        "cordon": str(cordon),
        "seconds": seconds,
        "reason": clean(reason),
        "actor": "client" if cordon == Cordon.DRAINING else "scheduler",
        "epoch": epoch,
    }
    return bool(tx.execute(_CORDON, values).rowcount)


_UNCORDON = text(
    """
    WITH old AS (
        SELECT id, cordon FROM nodes WHERE id = CAST(:id AS uuid) AND cordon IS NOT NULL FOR UPDATE
    ), moved AS (
        UPDATE nodes SET cordon = NULL, cordon_until = NULL, cordon_reason = NULL, faults = 0,
            quarantines = CASE WHEN :forgive THEN 0 ELSE quarantines END
        FROM old WHERE nodes.id = old.id
    ), logged AS (
        INSERT INTO events (node_id, epoch, actor, detail)
        SELECT id, :epoch, CASE WHEN :forgive THEN 'client' ELSE 'scheduler' END,
            jsonb_build_object('uncordoned', cordon)
        FROM old
    )
    SELECT cordon FROM old"""
)


def uncordon(tx: Connection, epoch: int, node_id: str, *, forgive: bool = True) -> Cordon | None:
    """Let a node take work again; the cordon that it had, None if it had none.

    `forgive`: a person trusts it, its quarantines are forgotten. Otherwise it is on probation while they are not 0.
    """
    found = tx.execute(_UNCORDON, {"id": node_id, "forgive": forgive, "epoch": epoch}).scalar_one_or_none()
    return Cordon(found) if found is not None else None


_QUARANTINES_OVER = text(
    "SELECT id::text FROM nodes WHERE cordon = 'quarantined' AND cordon_until <= statement_timestamp()"
)


def quarantines_over(tx: Connection) -> list[str]:
    """The nodes whose quarantine is over, by the database's clock."""
    return [row[0] for row in tx.execute(_QUARANTINES_OVER)]


_GONE = text("SELECT id::text FROM nodes WHERE id = ANY(CAST(:ids AS uuid[])) AND state IN ('lost', 'left')")


def gone(tx: Connection, node_ids: Sequence[str]) -> list[str]:
    """Those of these nodes that are known to be lost or to have left."""
    return [row[0] for row in tx.execute(_GONE, {"ids": list(node_ids)})]


_DRAINS_DUE = text("SELECT id::text FROM nodes WHERE cordon = 'draining' AND cordon_until <= statement_timestamp()")


def drains_due(tx: Connection) -> list[str]:
    """The nodes that drain and where nothing shall run any more, by the database's clock."""
    return [row[0] for row in tx.execute(_DRAINS_DUE)]


_COUNT_FAULTS = text(
    """
    UPDATE nodes SET faults = given.faults, quarantines = given.quarantines
    FROM json_to_recordset(CAST(:rows AS json)) AS given (id uuid, faults int, quarantines int)
    WHERE nodes.id = given.id"""
)


def count_faults(tx: Connection, counts: Mapping[str, tuple[int, int]]) -> int:
    """Keep, by node, its faults since its last success and its quarantines since it was last trusted."""
    rows = [{"id": node_id, "faults": faults, "quarantines": past} for node_id, (faults, past) in counts.items()]
    return tx.execute(_COUNT_FAULTS, {"rows": storable(rows)}).rowcount


_FIND = text(
    """
    SELECT id, name, hostname, incarnation, state, slots, reputation::float8 AS reputation, region, labels, capability,
        cordon, cordon_until, cordon_reason, faults, quarantines, tried, telemetry, up_seconds, first_seen_at,
        registered_at, last_seen_at, left_at,
        extract(epoch FROM statement_timestamp() - last_seen_at)::float8 AS seen_seconds_ago,
        extract(epoch FROM cordon_until - statement_timestamp())::float8 AS cordon_seconds_left, work.*,
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
