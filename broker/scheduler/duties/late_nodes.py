"""Who has not beaten for too long: suspect after a moment, lost after a lease, or sooner where its process is dead.

Redis is asked for those who are late, by its own clock, so a cluster that is well costs one small answer. Time in which
nobody could beat is nobody's lateness: see `broker.scheduler.watching`. A node whose process was killed has lost its
connections as well, which a node that is cut off has not: see `broker.scheduler.connections`. With an `exclusive` job
on it, it is given the whole lease all the same.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar

from broker.scheduler.connections import Connections
from broker.scheduler.duties.duty import Duty
from broker.scheduler.log_lines import line
from broker.scheduler.registering import give_up
from broker.scheduler.watching import GAP_SECONDS, Watch
from cyxwiz_tasks.protocol.controls import RegisterAgain
from cyxwiz_tasks.protocol.names import BEATS, HEADER
from db import nodes
from db.models import NodeState

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader
    from broker.scheduler.turn import Turn

log = logging.getLogger(__name__)

_ASK = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local late = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - ARGV[1]), 'WITHSCORES')
return {string.format('%.6f', now), redis.call('ZCARD', KEYS[1]), late}
"""
#: silent for so many times `suspect_after_seconds`, and without a connection: dead. Twice as many for a node that was
#: not heard since this leader, or Redis, came: then everybody has to find his way back.
_DEAD_FACTOR = 2.5
#: how often a node that beats without being registered is told to register
_REMIND_SECONDS = 5.0
#: a beat so old of a node that nobody knows is the last trace of one that is gone for good
_FORGET_SECONDS = 3600.0


class LateNodes(Duty):
    every_seconds: ClassVar[float] = 0.25

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        self._watch = Watch(2 * leader.settings.lease_seconds)
        self._connections = Connections()
        self._reminded: dict[str, float] = {}

    def redis_is_back(self) -> None:
        self._watch.start_anew()

    def run_once(self) -> dict[str, int]:
        settings, cluster = self.leader.settings, self.leader.memory.cluster
        now, members, late = self._ask(settings.suspect_after_seconds)
        if members != len(cluster):
            self._compare(now)
            now, members, late = self._ask(settings.suspect_after_seconds)
        self._watch.looked(time.monotonic(), now, self.leader.inbox.unanswered_seconds())
        silences = {node_id: self._watch.silence(beat) for node_id, beat in late.items() if node_id in cluster}
        lost = {node_id for node_id, silence in silences.items() if silence >= settings.lease_seconds}
        dead = self._dead(late, silences) - lost
        suspects = [node.node_id for node in cluster if node.state == NodeState.SUSPECT]
        moves = {node_id: NodeState.UP for node_id in suspects if node_id not in late}
        for node_id, silence in silences.items():
            up = cluster.node(node_id).state == NodeState.UP
            if up and silence >= settings.suspect_after_seconds and node_id not in lost | dead:
                moves[node_id] = NodeState.SUSPECT
        if lost or dead or moves:
            with self.leader.turn() as turn:
                lost |= {node_id for node_id in dead if not _has_exclusive_job(turn, node_id)}
                self._apply(turn, moves, sorted(lost))
        return {"moved": len(moves), "lost": len(lost)}

    def _dead(self, late: dict[str, float], silences: dict[str, float]) -> set[str]:
        """Of the silent nodes, those that hold no connection any more."""
        patience_seconds = _DEAD_FACTOR * self.leader.settings.suspect_after_seconds
        asked = [
            node_id
            for node_id, silence in silences.items()
            if silence >= patience_seconds * (1 if self._watch.heard(late[node_id]) else 2)
        ]
        return self._connections.gone(self.leader.redis, asked) if asked else set()

    def _apply(self, turn: Turn, moves: dict[str, NodeState], lost: list[str]) -> None:
        cluster = turn.memory.cluster
        for state in sorted(set(moves.values())):
            moving = [node_id for node_id, to in moves.items() if to == state]
            marked = nodes.mark(turn.tx, turn.epoch, moving, state)
            for node_id in moving:
                cluster.set_state(node_id, state)
                if node_id in marked:
                    log.info(line(f"node_{state}", node=node_id, name=cluster.node(node_id).name))
        for node_id in lost:
            give_up(turn, node_id, NodeState.LOST)

    def _ask(self, suspect_after_seconds: float) -> tuple[float, int, dict[str, float]]:
        answer: Any = self.leader.redis.eval(_ASK, 1, BEATS, suspect_after_seconds)
        now, members, late = answer
        pairs = zip(late[::2], late[1::2], strict=True)
        return float(now), int(members), {_id(node_id): float(beat) for node_id, beat in pairs}

    def _compare(self, now: float) -> None:
        """Redis lost nodes that are known (then their silence counts from now), or has some that are not."""
        redis, cluster = self.leader.redis, self.leader.memory.cluster
        found: Any = redis.zrange(BEATS, 0, -1, withscores=True)
        beats: dict[str, float] = {_id(node_id): beat for node_id, beat in found}
        # One that was not heard of by this leader yet stays suspect until it is.
        unheard = now - self.leader.settings.suspect_after_seconds - GAP_SECONDS
        missing = {
            node.node_id: now if node.state == NodeState.UP else unheard
            for node in cluster
            if node.node_id not in beats
        }
        if missing:
            redis.zadd(BEATS, missing, nx=True)
        strangers = {node_id: beat for node_id, beat in beats.items() if node_id not in cluster}
        self._reminded = {node_id: at for node_id, at in self._reminded.items() if node_id in strangers}
        for node_id, beat in strangers.items():
            if now - beat > _FORGET_SECONDS:
                redis.zrem(BEATS, node_id)
            elif now - beat < _REMIND_SECONDS and now - self._reminded.get(node_id, 0.0) > _REMIND_SECONDS:
                self._reminded[node_id] = now
                self._remind(node_id)

    def _remind(self, node_id: str) -> None:
        outbox = self.leader.new_outbox()
        outbox.control(node_id, RegisterAgain())
        self.leader.publish(outbox)


def _id(member: bytes) -> str:
    """Whatever stands in the list of beats that is no id is of no node that anybody knows."""
    return member.decode(errors="replace")


def _has_exclusive_job(turn: Turn, node_id: str) -> bool:
    """Connections also break on the way, and then the job lives: an exclusive one ends itself before its lease does."""
    job_ids = [live.job_id for _, live in turn.memory.on_node(node_id)]
    turn.look_up(job_ids)
    headers = (turn.messages[job_id].headers.get(HEADER) for job_id in job_ids if job_id in turn.messages)
    return any(isinstance(header, dict) and header.get("exclusive") for header in headers)
