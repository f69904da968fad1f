"""Who was asked to give its place to whom: a note of each in the events, so that the next leader knows it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from db.moves import LIVE
from db.rows import batch


@dataclass
class Preemption:
    """The attempt with this token was asked to leave; `claimant` is the job that waits for its place."""

    job_id: str
    token: int
    claimant: str
    #: on which the claimant gets its place, or all of a gang's
    node_ids: list[str]


_NOTE = text(
    """
    INSERT INTO events (job_id, node_id, attempt, token, epoch, cause, actor, detail)
    SELECT attempts.job_id, node_id, number, token, :epoch, 'preempted', 'scheduler',
        jsonb_build_object('preempted_for', claimant, 'node_ids', node_ids)
    FROM json_to_recordset(CAST(:rows AS json)) AS given (token bigint, claimant text, node_ids json)
        JOIN attempts USING (token)"""
)


def note(tx: Connection, epoch: int, preemptions: Sequence[Preemption]) -> None:
    """Remember that these attempts were asked to leave, and for whom."""
    tx.execute(_NOTE, {"rows": batch(preemptions), "epoch": epoch})


_UNDER_WAY = text(
    """
    SELECT events.job_id::text, events.token, detail->>'preempted_for', coalesce(detail->'node_ids', '[]')
    FROM attempts JOIN events ON events.job_id = attempts.job_id AND events.token = attempts.token
    WHERE attempts.state = ANY(:live) AND to_state IS NULL AND detail ? 'preempted_for'
    ORDER BY events.seq"""
)


def under_way(tx: Connection) -> list[Preemption]:
    """Those of attempts that have not ended, in the order in which they were asked."""
    return [Preemption(*row) for row in tx.execute(_UNDER_WAY, {"live": LIVE})]
