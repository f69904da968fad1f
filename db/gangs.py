"""The members of gangs: attempts of one job on several nodes at once.

The attempt itself, with its state, its cause and the fence, stands in `attempts` as that of any job: its token is the
gang's, and its node is that of rank 0. Here stands each member, rank 0 too: where it is, and how it ended. What a
member says counts only while the gang's attempt is live, and a live attempt is its job's current one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from db.attempts import Place, Start
from db.moves import LIVE
from db.reports import check_ids, check_number
from db.rows import batch, readable


@dataclass(kw_only=True)
class NewMember(Place):
    """A place for one member of a gang that was just placed; `lead` is the token of the gang's attempt."""

    lead: int
    rank: int


_PLACE = text(
    """
    INSERT INTO gang_members (token, lead, rank, node_id, incarnation, gpus, gpu_memory_bytes, cpus, ram_bytes)
    SELECT CASE WHEN rank = 0 THEN lead ELSE nextval('attempt_token_seq') END, given.*
    FROM json_to_recordset(CAST(:rows AS json)) AS given (
        lead bigint, rank smallint, node_id uuid, incarnation text, gpus int[], gpu_memory_bytes bigint, cpus int,
        ram_bytes bigint
    )
    RETURNING lead, rank, token"""
)


def place(tx: Connection, members: Sequence[NewMember]) -> dict[tuple[int, int], int]:
    """Record the members of gangs whose attempts were recorded in this transaction; tokens by lead and rank."""
    rows = tx.execute(_PLACE, {"rows": batch(members)}) if members else ()
    return {(lead, rank): token for lead, rank, token in rows}


_START = text(
    """
    UPDATE gang_members SET started_at = statement_timestamp(), pid = given.pid, device = given.device
    FROM json_to_recordset(CAST(:rows AS json)) AS given (token bigint, node_id uuid, pid int, device text), attempts
    WHERE gang_members.token = given.token AND gang_members.node_id = given.node_id
        AND gang_members.started_at IS NULL
        AND attempts.token = lead AND attempts.state = ANY(:live)"""
).bindparams(live=LIVE)


def start(tx: Connection, reports: Sequence[Start]) -> int:
    """Note that members' processes run; how many moved."""
    return tx.execute(_START, {"rows": batch(reports)}).rowcount if reports else 0


@dataclass
class MemberEnd:
    """A member's last word, `report`, as an object. Raises ProtocolError for what a table cannot hold."""

    job_id: str
    token: int
    node_id: str
    report: dict[str, Any]

    def __post_init__(self) -> None:
        check_ids(self.job_id, self.node_id)
        check_number("token", self.token, 64)
        check_number("exit_code", self.report.get("exit_code"), 32)


_END = text(
    """
    UPDATE gang_members SET ended_at = statement_timestamp(), report = given.report
    FROM json_to_recordset(CAST(:rows AS json)) AS given (job_id uuid, token bigint, node_id uuid, report jsonb),
        attempts
    WHERE gang_members.token = given.token AND gang_members.node_id = given.node_id
        AND gang_members.ended_at IS NULL
        AND attempts.token = lead AND attempts.job_id = given.job_id AND attempts.state = ANY(:live)
    RETURNING gang_members.token"""
).bindparams(live=LIVE)


def end(tx: Connection, ends: Sequence[MemberEnd]) -> set[int]:
    """Note how members ended; the tokens of those that had not. What the gang's attempt becomes is another matter."""
    return {row[0] for row in tx.execute(_END, {"rows": batch(ends)})} if ends else set()


_CLOSE = text(
    """
    UPDATE gang_members SET ended_at = coalesce(ended_at, statement_timestamp()), report = report - 'result'
    WHERE lead = ANY(:leads)"""
)


def close(tx: Connection, leads: Sequence[int]) -> None:
    """The attempts of these gangs are over; what rank 0 returned is the job's by now."""
    if leads:
        tx.execute(_CLOSE, {"leads": list(leads)})


@dataclass(frozen=True)
class Member:
    """One of a gang that is under way, as a new leader finds it. Sizes are bytes."""

    token: int
    job_id: str
    rank: int
    node_id: str
    incarnation: str
    gpus: tuple[int, ...]
    gpu_memory_bytes: int
    started: bool
    #: its last word, if it has ended
    report: dict[str, Any] | None


_LIVE = text(
    """
    SELECT members.token, attempts.job_id::text, rank, members.node_id::text, members.incarnation, members.gpus,
        members.gpu_memory_bytes, members.started_at IS NOT NULL, report
    FROM gang_members AS members JOIN attempts ON attempts.token = lead
    WHERE attempts.state = ANY(:live) ORDER BY lead, rank"""
).bindparams(live=LIVE)


def live(tx: Connection) -> dict[str, list[Member]]:
    """By job, the members of each gang that is under way, by rank."""
    found: dict[str, list[Member]] = {}
    for row in tx.execute(_LIVE):
        token, job_id, rank, node_id, incarnation, gpus, *rest = row
        found.setdefault(job_id, []).append(Member(token, job_id, rank, node_id, incarnation, tuple(gpus), *rest))
    return found


_OF_JOB = text(
    """
    SELECT number AS attempt, rank, members.node_id, nodes.name AS node, members.gpus, members.pid, members.device,
        members.started_at, members.ended_at, report ->> 'outcome' AS outcome, report ->> 'cause' AS cause,
        report ->> 'message' AS message
    FROM gang_members AS members JOIN attempts ON attempts.token = lead
    LEFT JOIN nodes ON nodes.id = members.node_id
    WHERE attempts.job_id = CAST(:id AS uuid) ORDER BY number, rank"""
)


def of_job(tx: Connection, job_id: str) -> list[dict[str, Any]]:
    """The members of all of a job's attempts, ready for JSON."""
    return [readable(row) for row in tx.execute(_OF_JOB, {"id": job_id})]
