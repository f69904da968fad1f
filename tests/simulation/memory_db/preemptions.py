"""`db.preemptions` in memory."""

from __future__ import annotations

from collections.abc import Sequence

from db.preemptions import Preemption
from tests.simulation.memory_db.tables import Tx


def note(tx: Tx, epoch: int, preemptions: Sequence[Preemption]) -> None:
    for given in preemptions:
        attempt = tx.tables.attempts[given.token]
        tx.log(
            epoch,
            "scheduler",
            None,
            None,
            job_id=given.job_id,
            node_id=attempt.new.node_id,
            attempt=attempt.number,
            token=given.token,
            cause="preempted",
            detail={"preempted_for": given.claimant, "node_ids": given.node_ids},
        )


def under_way(tx: Tx) -> list[Preemption]:
    return [
        Preemption(str(event.job_id), event.token, event.detail["preempted_for"], event.detail["node_ids"])
        for event in tx.tables.events
        if event.token in tx.tables.live and event.detail is not None and "preempted_for" in event.detail
    ]
