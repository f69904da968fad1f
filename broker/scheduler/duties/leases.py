"""Leadership and leases: this process says that it is there, and renews the leases of attempts on nodes that beat.

A node's silence is judged in `late_nodes`. A lease that runs out in spite of that, by PostgreSQL's clock, belongs to an
attempt whose node is not known any more; it is taken back here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.ending import lose
from cyxwiz_tasks import failpoints
from cyxwiz_tasks.states import Cause
from db import attempts
from db.models import NodeState

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

#: of a lease, between two renewals
_SHARE = 0.25


class Leases(Duty):
    every_seconds: ClassVar[float] = 1.0

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        self._until_renewal = 0

    def run_once(self) -> dict[str, int]:
        self.leader.still_here()
        self._until_renewal -= 1
        if self._until_renewal > 0:
            return {}
        lease_seconds = self.leader.settings.lease_seconds
        self._until_renewal = max(1, int(lease_seconds * _SHARE / self.every_seconds))
        cluster, live = self.leader.memory.cluster, self.leader.memory.live
        if not live:
            return {}
        # A suspect node's leases are renewed too: whether it is lost is decided by its silence alone.
        known = [node.node_id for node in cluster if node.state in (NodeState.UP, NodeState.SUSPECT)]
        with self.leader.turn() as turn:
            attempts.renew(turn.tx, known, lease_seconds)
            failpoints.hit("scheduler.renewing")
            overdue = set(attempts.overdue(turn.tx))
            # Only rank 0 of a gang has a lease in the record: it is the whole attempt's.
            there = set(known)
            gone = [
                name for name, one in live.items() if one.token in overdue or (one.rank and one.node_id not in there)
            ]
            lost = lose(turn, gone, Cause.NODE_LOST, "its node is not known any more")
        return {"lost": lost}
