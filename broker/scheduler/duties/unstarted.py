"""Attempts whose node has not started them: the message may be lost, so it is published again.

A node ignores a token that it knows, so one message too many does no harm. A node that beats and still does not start
what lies in its queue is not consuming: after a while its attempts are taken back and placed again.

The word that an attempt has started is said once, and Redis may lose it. So before any of that, what the node tells
with its beats is looked at: what has begun there counts as started.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.ending import lose
from broker.scheduler.live import Live
from broker.scheduler.placing import publish
from broker.scheduler.reports import started
from broker.scheduler.running import tellings
from broker.scheduler.standing import broke_jobs
from cyxwiz_tasks.protocol.reports import Started
from cyxwiz_tasks.states import Cause
from db.models import NodeState

#: from an attempt's publication to the next one; doubled each time
_PATIENCE_SECONDS = 5.0
#: a node that has not started an attempt by then will not: on a cold node the first process takes some seconds
_LIMIT_SECONDS = 60.0


class Unstarted(Duty):
    every_seconds: ClassVar[float] = 0.5

    def redis_is_back(self) -> None:
        for live in self.leader.memory.live.values():
            if not live.running:
                live.published_at = -math.inf

    def run_once(self) -> dict[str, int]:
        late = {name: live for name, live in self.leader.memory.live.items() if self._is_late(live)}
        if not late:
            return {}
        begun = self._begun(late.values())
        with self.leader.turn() as turn:
            started(turn, begun)
            late = {name: live for name, live in late.items() if not live.running}
            given_up = [name for name, live in late.items() if self._is_hopeless(live)]
            again = [late[name] for name in late if name not in set(given_up)]
            turn.look_up(list({live.job_id for live in again}))
            for live in again:
                live.publications += 1
                live.published_at = time.monotonic()
                if live.job_id in turn.messages:
                    publish(turn, live)
            message = f"its node did not start it within {_LIMIT_SECONDS:g} s"
            deaf = {late[name].node_id for name in given_up if not late[name].cancel_asked}
            lost = lose(turn, given_up, Cause.NODE_LOST, message, stop=True)
            for node_id in deaf:
                broke_jobs(turn, node_id, f"it did not start a job within {_LIMIT_SECONDS:g} s")
        return {"begun": len(begun), "published_again": len(again), "given_up": lost}

    def _begun(self, late: Iterable[Live]) -> list[Started]:
        """The starts of which these attempts' nodes tell. However old a telling is: what has begun stays begun."""
        told = tellings(self.leader.redis, {live.node_id for live in late})
        found = []
        for live in late:
            telling = told.get(live.node_id)
            if telling is None or telling.incarnation != live.incarnation:
                continue
            if (process := telling.begun.get(live.token)) is not None:
                found.append(Started(**live.identity, **process.model_dump()))
        return found

    def _is_late(self, live: Live) -> bool:
        patience_seconds = _PATIENCE_SECONDS * 2 ** (live.publications - 1)
        if live.running or live.ended is not None:
            return False
        return time.monotonic() - live.published_at > patience_seconds and self._is_up(live)

    def _is_hopeless(self, live: Live) -> bool:
        # A Celery worker drops the message of a task that was revoked, without a word: then nobody will report its end.
        if live.cancel_asked:
            return True
        # The word that it started may be on its way since before this leader, or Redis, came: it is published first.
        return live.published_at > -math.inf and time.monotonic() - live.assigned_at > _LIMIT_SECONDS

    def _is_up(self, live: Live) -> bool:
        cluster = self.leader.memory.cluster
        return live.node_id in cluster and cluster.node(live.node_id).state == NodeState.UP
