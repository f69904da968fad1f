"""For the shape of a gang: the score of every node for one of its members, and the nodes for all of them together."""

from __future__ import annotations

from broker.scheduler.candidates import Found, LeaningCandidates
from broker.scheduler.gang_choice import choose


class GangCandidates(LeaningCandidates):
    """Asleep it is asked once some node is freed, as others are; but then it looks at all nodes, since those on which
    too few of its members fitted before count too.
    """

    def best(self, count: int) -> list[Found]:
        """The nodes of the whole gang, by rank; empty: it does not fit now. There are no runners-up, so `count` does
        not matter.
        """
        cluster = self._cluster
        if self._described != cluster.described.end:
            self._judge_described()
        if self._changed != cluster.changed.end:
            self._catch_up()
        columns, size = cluster.columns, len(self._live)
        rows = choose(
            self._live, columns.region[:size], columns.network_bytes_per_second[:size], members=self.demand.nodes
        )
        self.asleep = not rows
        return [(row, self._live.item(row)) for row in rows]
