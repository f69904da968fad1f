"""What Redis keeps of things that are over: messages of attempts that were taken back, lists of nodes that are gone.

A node starts what lies in its queue without a question, so a message of an attempt that was taken back, or published
again after it was taken, would cost it a start that nobody wants. A node's queue is looked into only if it holds more
than the record has placed there. Lists of nodes that are gone are found by going through the keys, a page a run; only
what is certainly of this project is removed, for others may share the Redis. Messages that a leader of long ago has
left are found there as well, and given back.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.inbox import PROCESSING
from broker.scheduler.log_lines import line
from broker.scheduler.outbox import REPLY_TTL_SECONDS
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, BEATS, control_key, node_queue, reply_key
from db import nodes

if TYPE_CHECKING:
    from broker.scheduler.leader import Leader

log = logging.getLogger(__name__)

#: nodes whose queues one run measures, and keys that it goes through for each pattern, by turns
_NODES, _KEYS = 500, 500
#: longer than that nobody holds a message without acknowledging it: its process is gone
_UNACKED_IDLE_SECONDS = 3600
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OF_NODE = re.compile(rf"(?:{re.escape(node_queue(''))}|{re.escape(control_key(''))})({_UUID})")
_PATTERNS = (node_queue("*"), control_key("*"), reply_key("*"), "cyxwiz.unacked.*", f"{PROCESSING}.*")


class Ghosts(Duty):
    every_seconds: ClassVar[float] = 2.0

    def __init__(self, leader: Leader) -> None:
        super().__init__(leader)
        self._round: list[str] = []
        self._cursors = dict.fromkeys(_PATTERNS, 0)

    def run_once(self) -> dict[str, int]:
        keys = [key for pattern in _PATTERNS for key in self._page(pattern)]
        return {
            "messages": self._empty_queues(),
            "lists": self._forget_nodes(keys),
            "unacked": self._forget_unacked([key for key in keys if key.startswith(_PATTERNS[3][:-1])]),
            "replies": self._limit_replies([key for key in keys if key.startswith(_PATTERNS[2][:-1])]),
            "given_back": self.leader.inbox.give_back_of_old(
                self.leader.redis, [key for key in keys if key.startswith(_PATTERNS[4][:-1])]
            ),
        }

    def _page(self, pattern: str) -> list[str]:
        found: Any = self.leader.redis.scan(self._cursors[pattern], pattern, _KEYS)
        self._cursors[pattern], keys = found
        return [key.decode(errors="replace") for key in keys]

    def _empty_queues(self) -> int:
        """Remove messages of attempts that do not wait for their start."""
        cluster, redis = self.leader.memory.cluster, self.leader.redis
        if not self._round:
            self._round = [node.node_id for node in cluster]
        asked, self._round = self._round[:_NODES], self._round[_NODES:]
        pipe = redis.pipeline(transaction=False)
        for node_id in asked:
            pipe.llen(node_queue(node_id))
        lengths = dict(zip(asked, pipe.execute(), strict=True))
        if not any(lengths.values()):
            return 0
        unstarted = [live for live in self.leader.memory.live.values() if not live.running and live.ended is None]
        placed, tokens = Counter(live.node_id for live in unstarted), {live.token for live in unstarted}
        return sum(
            self._remove_stale(node_id, tokens) for node_id, length in lengths.items() if length > placed[node_id]
        )

    def _remove_stale(self, node_id: str, tokens: set[int]) -> int:
        """Keep one message of each attempt that has not started."""
        redis, queue, removed = self.leader.redis, node_queue(node_id), 0
        kept: set[int] = set()
        messages: Any = redis.lrange(queue, 0, -1)
        for raw in reversed(messages):
            token = _token(raw)
            if token in tokens and token not in kept:
                kept.add(token)
            else:
                # From the left end, where the newer ones lie.
                removed += int(redis.lrem(queue, 1, raw))
        if removed:
            log.info(line("stale_messages", node=node_id, removed=removed))
        return removed

    def _forget_nodes(self, keys: list[str]) -> int:
        """Remove the queues and control lists of nodes that the record knows as gone, and that do not beat."""
        lists = {key: match[1] for key in keys if (match := _OF_NODE.fullmatch(key)) is not None}
        unknown = sorted({node_id for node_id in lists.values() if node_id not in self.leader.memory.cluster})
        if not unknown:
            return 0
        with self.leader.engine.connect() as tx:
            gone = nodes.gone(tx, unknown)
        silent = {node_id for node_id in gone if self.leader.redis.zscore(BEATS, node_id) is None}
        stale = [key for key, node_id in lists.items() if node_id in silent]
        return int(self.leader.redis.delete(*stale)) if stale else 0

    def _forget_unacked(self, keys: list[str]) -> int:
        pipe = self.leader.redis.pipeline(transaction=False)
        for key in keys:
            pipe.object("IDLETIME", key)
        # A Redis that evicts by frequency does not know it.
        idle = zip(keys, pipe.execute(raise_on_error=False), strict=True)
        stale = [key for key, seconds in idle if isinstance(seconds, int) and seconds >= _UNACKED_IDLE_SECONDS]
        return int(self.leader.redis.delete(*stale)) if stale else 0

    def _limit_replies(self, keys: list[str]) -> int:
        """An answer that nobody fetched must not stay for ever."""
        pipe = self.leader.redis.pipeline(transaction=False)
        for key in keys:
            pipe.expire(key, REPLY_TTL_SECONDS, nx=True)
        return sum(pipe.execute())


def _token(raw: bytes) -> int | None:
    try:
        return int(json.loads(raw)["headers"][ASSIGNMENT_HEADER]["token"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
