"""Who of those that fit nowhere gets a place reserved.

The next in line does, and whoever could run on none of the nodes of those before it: it heads a line of its own. A big
job behind them gets one too, on a node of its own, if it is known when that begins. One after the other would be too
slow: it takes long until all of a node is free, and meanwhile jobs come that need all of another. Small jobs behind
need none, since a few GPUs become free now and then anyway.

Pure but for what it remembers: since when somebody was found to be blocked. Moments are given, of any one clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from broker.scheduler.backlog import Backlog, Queue, Waiting
from broker.scheduler.claims import Claim, Claims
from broker.scheduler.cluster import Cluster
from broker.scheduler.places import Able, able, taking_work
from broker.scheduler.reservations import Blocked, EndOf, plan
from broker.scheduler.shapes import Shape

#: What one look costs has a limit: kinds of waiting jobs that it is at (those with different time limits are different
#: ones), different shapes among them, and nodes, by turns, for the next in line and for each big job behind.
_KINDS, _SHAPES, _NODES, _NODES_BEHIND = 64, 8, 128, 32
#: jobs with a reservation on the nodes of one line; no further one gets any
_RESERVATIONS = 8
#: who takes so large a share of the GPUs of the largest node that could run it is big
_BIG_SHARE = 0.5

#: by row
_Mask = NDArray[np.bool_]


class Lines:
    def __init__(self, reserve_after_seconds: float) -> None:
        self._after_seconds = reserve_after_seconds
        self._blocked_since: dict[str, float] = {}
        #: where the next look at the nodes begins
        self._start = 0

    def plan(
        self,
        backlog: Backlog,
        cluster: Cluster,
        claims: Claims,
        now: float,
        end_of: EndOf,
        start_by: Mapping[str, float],
    ) -> list[Claim]:
        """All reservations from now on. To be asked after all who fit have been placed.

        Who has one keeps it, or gets one that begins sooner, unless somebody more urgent takes the node. Who cannot
        start by the moment that its submitter gave keeps none from others: should those there end early, it may start
        all the same.
        """
        self._start += _NODES
        current = {claim.key: claim for claim in claims}
        planned, fitting = list[Claim](), _Fitting(cluster)
        contended, theirs = fitting.nobody(), list[_Mask]()
        for queue, waiting in self._late(backlog, claims, now):
            own = claims.of(waiting.job_id)
            if not own and contended[fitting.rows].all() and not _needs_several(queue):
                continue
            could = fitting.of(queue)
            if could is None:
                continue
            is_next = not contended[could.rows].any()
            # Who has one is passed by somebody more urgent, and keeps it where that one does not take the node.
            if not is_next and not own and (not fitting.is_big(queue) or _count(theirs, could) >= _RESERVATIONS):
                continue
            count = max(_NODES, 2 * waiting.resources.nodes) if is_next else _NODES_BEHIND
            nodes = could.some(cluster, self._start, count)
            for claim in own:
                nodes += could.one(cluster, claim.node_id)
            taken = {claim.node_id for claim in planned} | _held_by_others(claims, waiting)
            found = plan([Blocked(waiting, nodes)], end_of, now, current, taken)
            if found and _is_too_late(found[0], start_by.get(waiting.job_id)):
                continue
            contended[could.rows] = True
            # Behind the next, a place is kept only if it is known from when on: others can be backfilled then.
            if found and (is_next or found[0].starts_at is not None):
                planned += found
                theirs.append(fitting.nobody())
                theirs[-1][could.rows] = True
        return planned

    def _late(self, backlog: Backlog, claims: Claims, now: float) -> list[tuple[Queue, Waiting]]:
        """The heads that have been blocked for long enough."""
        heads, since = _heads(backlog, claims), self._blocked_since
        self._blocked_since = {waiting.job_id: since.get(waiting.job_id, now) for _, waiting in heads}
        return [one for one in heads if now - self._blocked_since[one[1].job_id] >= self._after_seconds]


def _heads(backlog: Backlog, claims: Claims) -> list[tuple[Queue, Waiting]]:
    """The next of each kind, the most urgent first: after a turn that placed all it could, none of them fits.

    Of one priority, those with a reservation stay ahead, in the order in which they got it: fair shares change from one
    moment to the next.
    """
    reserved = {claim.job_id: number for number, claim in enumerate(claims) if not claim.clearing}
    found = [(queue, queue.find(job_id)) for job_id in reserved if (queue := backlog.queue_of(job_id)) is not None]
    next_ones = [(queue, queue.find(queue.head[1])) for queue in islice(backlog, _KINDS) if queue.head]
    found += [one for one in next_ones if one[1].job_id not in claims]
    found = [one for one in found if not one[0].is_held_back]
    return sorted(found, key=lambda one: (-one[0].rank, reserved.get(one[1].job_id, len(reserved))))


def _held_by_others(claims: Claims, waiting: Waiting) -> set[str]:
    """The nodes that are reserved for others, as urgent as this one."""
    rank = waiting.priority.rank
    return {claim.node_id for claim in claims if claim.rank >= rank and claim.job_id != waiting.job_id}


def _is_too_late(claim: Claim, start_by: float | None) -> bool:
    return start_by is not None and claim.starts_at is not None and claim.starts_at > start_by


class _Fitting:
    """The nodes that could run jobs of a few shapes, each looked for once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.rows = cluster, taking_work(cluster)
        self._known: dict[Shape, Able | None] = {}
        #: of the largest node that could run it
        self._most_gpus: dict[Shape, int] = {}

    def nobody(self) -> _Mask:
        return np.zeros(len(self._cluster.rows), bool)

    def of(self, queue: Queue) -> Able | None:
        """None: no node could, or these are more shapes than one look is at."""
        shape = self._shape(queue)
        if shape not in self._known:
            if len(self._known) == _SHAPES:
                return None
            found = able(self._cluster, queue.resources, queue.applicant, self.rows)
            self._known[shape] = found if len(found.rows) else None
        return self._known[shape]

    def is_big(self, queue: Queue) -> bool:
        """Of a shape that some node could run."""
        could = self.of(queue)
        if could is None or not _needs_several(queue):
            return False
        shape = self._shape(queue)
        if shape not in self._most_gpus:
            gpus_by_node = (self._cluster.columns.gpu_kind[could.rows] >= 0).sum(axis=1)
            self._most_gpus[shape] = int(gpus_by_node.max())
        return queue.resources.gpus >= _BIG_SHARE * self._most_gpus[shape]

    def _shape(self, queue: Queue) -> Shape:
        return queue.shape, self._cluster.refusing(queue.resources, queue.applicant)


def _needs_several(queue: Queue) -> bool:
    resources = queue.resources
    return resources.gpus > 1 and resources.nodes == 1 and not resources.shared


def _count(masks: list[_Mask], could: Able) -> int:
    """How many of these have nodes in common with it."""
    return sum(bool(mask[could.rows].any()) for mask in masks)
