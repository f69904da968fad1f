"""What nodes say that they run against what the record says that they run.

A node tells with its beats which attempts it runs, or has ended without the scheduler's word on it. An attempt that is
not the record's is a zombie, and is stopped; one that the record has running there and the node does not know is lost,
and its job is placed again; one that was told to end and runs on is told again. How old their checkpoints are is told
in the same way, and is known only here: the next telling says it to the next leader.

A telling may be older than what is known here. A token counts as missing, or as a zombie, after `_TELLINGS` different
ones that say so: the last of them was begun after the one before it had arrived.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, ClassVar

from broker.scheduler import stopping
from broker.scheduler.duties.duty import Duty
from broker.scheduler.ending import lose
from broker.scheduler.running import tellings
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.reports import Running
from cyxwiz_tasks.states import Cause

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader
    from broker.scheduler.live import Live

_TELLINGS = 3
#: how many nodes one run looks at, by turns: what it costs does not grow with their number
_NODES = 500


class Reconcile(Duty):
    every_seconds: ClassVar[float] = 1.0

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        #: nodes that this round has still to look at
        self._round: list[str] = []
        #: by node: the telling that was compared last, and by token how many said what is not so
        self._compared: dict[str, Running] = {}
        self._doubts: dict[str, dict[int, int]] = {}

    def run_once(self) -> dict[str, int]:
        told = self._news()
        if not told:
            return {}
        placed: dict[str, dict[int, str]] = defaultdict(dict)
        for name, live in self.leader.memory.live.items():
            if live.node_id in told:
                placed[live.node_id][live.token] = name
        zombies: list[tuple[str, int]] = []
        missing: list[str] = []
        overdue: list[str] = []
        for node_id, telling in told.items():
            here = placed[node_id]
            self._note_checkpoints(telling, here)
            for token in self._doubtful(node_id, telling, here):
                if token in here:
                    missing.append(here[token])
                else:
                    zombies.append((node_id, token))
            running = [here[token] for token in telling.tokens if token in here]
            overdue += [name for name in running if stopping.is_overdue(self.leader.memory.live[name])]
        if zombies or missing or overdue:
            self._act(zombies, missing, overdue)
        return {"zombies": len(zombies), "missing": len(missing), "told_again": len(overdue)}

    def _note_checkpoints(self, telling: Running, here: dict[int, str]) -> None:
        now = time.monotonic()
        for token, age_seconds in telling.checkpoint_age_seconds.items():
            if token in here:
                self.leader.memory.live[here[token]].saved(now - age_seconds)

    def _act(self, zombies: list[tuple[str, int]], missing: list[str], overdue: list[str]) -> None:
        with self.leader.turn() as turn:
            for node_id, token in zombies:
                turn.outbox.control(node_id, Stop(job="", token=token, grace_seconds=0))
            lose(turn, missing, Cause.NODE_LOST, "its node does not know it any more", stop=True)
            for name in overdue:
                if (live := turn.memory.live.get(name)) is not None:
                    stopping.repeat(turn, live)

    def _news(self) -> dict[str, Running]:
        """By node, those of the next nodes in turn that nobody has compared yet."""
        cluster = self.leader.memory.cluster
        if not self._round:
            self._round = [node.node_id for node in cluster]
            self._compared = {id: telling for id, telling in self._compared.items() if id in cluster}
            self._doubts = {id: doubts for id, doubts in self._doubts.items() if id in cluster}
        asked, self._round = self._round[:_NODES], self._round[_NODES:]
        found = tellings(self.leader.redis, asked)
        return {node_id: telling for node_id, telling in found.items() if self._is_news(node_id, telling)}

    def _is_news(self, node_id: str, telling: Running) -> bool:
        cluster = self.leader.memory.cluster
        if node_id not in cluster or cluster.node(node_id).incarnation != telling.incarnation:
            return False
        last = self._compared.get(node_id)
        if last is not None and last.incarnation == telling.incarnation and last.number >= telling.number:
            return False
        if last is None or last.incarnation != telling.incarnation:
            self._doubts.pop(node_id, None)
        self._compared[node_id] = telling
        return True

    def _doubtful(self, node_id: str, telling: Running, here: dict[int, str]) -> list[int]:
        """Tokens that enough tellings list although they are not current, or leave out although they run.

        `here` are the node's current ones, with what holds their places.
        """
        live, listed = self.leader.memory.live, set(telling.tokens)
        odd = [token for token in listed if token not in here]
        odd += [token for token, name in here.items() if token not in listed and _runs(live[name])]
        before = self._doubts.get(node_id, {})
        doubts = {token: before.get(token, 0) + 1 for token in odd}
        sure = [token for token, count in doubts.items() if count >= _TELLINGS]
        self._doubts[node_id] = {token: count for token, count in doubts.items() if count < _TELLINGS}
        return sure


def _runs(live: Live) -> bool:
    return live.running and live.ended is None
