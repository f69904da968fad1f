"""Placement: which waiting job goes to which node. Pure: it reads and changes the models in memory, and nothing else.

Queues are served in their order; a job goes to the node with the highest score. A queue whose head fits nowhere is left
for the rest of the call, since placing only ever takes capacity away, and costs nothing more until a node changes.

Where places are kept for jobs that fit nowhere (`claims.py`), these get them first once they are clear; and what is
kept is backfilled at the end, by whoever does not delay the job that it is kept for.

A gang is placed on all its nodes in one step, or waits: `gang_choice.py`. It does not backfill what is kept for others.
"""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from typing import NamedTuple

from broker.scheduler.avoided import Avoided
from broker.scheduler.backlog import Backlog, Queue, Waiting
from broker.scheduler.branch import Branch
from broker.scheduler.candidates import Candidates, Found
from broker.scheduler.claims import Claim, Claims
from broker.scheduler.cluster import Cluster
from broker.scheduler.demand import demand_of
from broker.scheduler.fair_share import Account
from broker.scheduler.holder import holder
from broker.scheduler.node import Node
from broker.scheduler.parking import PlacingFailed, blaming
from broker.scheduler.places import takes_work, without
from broker.scheduler.scoring import Parts, parts
from broker.scheduler.shapes import Shapes
from broker.scheduler.shares import taken_together
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources

_RUNNERS_UP = 2
#: scores of shapes of which no job waits any more are kept for so many shapes
_SPARE_SHAPES = 64


class RunnerUp(NamedTuple):
    node_id: str
    name: str
    score: float


class Placement(NamedTuple):
    """One job on one node, booked in the cluster; of a gang the first member with all `others`. Sizes are bytes."""

    waiting: Waiting
    node_id: str
    node_name: str
    incarnation: str
    #: NVML's indexes
    gpu_indexes: tuple[int, ...]
    #: on all its GPUs together; whole cards where they are the job's alone
    gpu_memory_bytes: int
    cpus: int
    ram_bytes: int
    score: float
    #: before weighing
    parts: Parts
    runners_up: tuple[RunnerUp, ...]
    #: the node is in quarantine, and no node without a cordon could ever run this
    last_resort: bool = False
    #: of a gang: which member this is, and for the one of rank 0 the places of all others, by rank
    rank: int = 0
    others: tuple[Placement, ...] = ()
    #: nodes with a better score that were passed over: attempts of it failed there
    passed_over: tuple[RunnerUp, ...] = ()

    @property
    def job_id(self) -> str:
        return self.waiting.job_id

    @property
    def members(self) -> tuple[Placement, ...]:
        """All places of the job, by rank; for all but gangs this one."""
        return (self, *self.others)


class Placer:
    """Places the jobs of one backlog on one cluster, and keeps each shape's scores from call to call."""

    def __init__(self, cluster: Cluster, backlog: Backlog, claims: Claims | None = None) -> None:
        self.cluster, self.backlog = cluster, backlog
        self.claims = claims if claims is not None else Claims(cluster)
        self.avoided = Avoided()
        self._shapes = Shapes(cluster)
        self._conditions = 0

    def place(self, limit: int, now: float | None = None) -> list[Placement]:
        """Take up to `limit` jobs out of the backlog and book them in the cluster, most urgent first.

        `now` is of the clock of the claims' moments; None: nobody is placed on what is kept because it ends in time.
        """
        placed: list[Placement] = []
        if not self.claims:
            self._place_in_order(placed, limit)
            return placed
        self._place_claimants(placed, limit)
        # Whoever is more urgent than one for whom something is kept has his turn at that before anybody less urgent has
        # his at what is left beside it.
        for rank in sorted({claim.rank for claim in self.claims}, reverse=True):
            self._place_in_order(placed, limit, above_rank=rank)
            self._take_kept_for_lesser(placed, limit, rank)
        self._place_in_order(placed, limit)
        while self._claims_fell(placed, limit):
            self._place_in_order(placed, limit)
        self._backfill(placed, limit, now)
        return placed

    def _place_in_order(self, placed: list[Placement], limit: int, above_rank: int = -1) -> None:
        cluster, shapes = self.cluster, self._shapes
        self._drop_spare_shapes()
        if self._conditions != len(cluster.conditions):
            # There is a new one: whom it refuses is found out as the bits are.
            self._conditions = len(cluster.conditions)
            _forget_bits(self.backlog.root)
        walk = _Walk(self.backlog.root, shapes, cluster)
        hopeful = shapes.hopeful()
        while len(placed) < limit and cluster.open_nodes:
            queue = walk.next(shapes.awake | hopeful)
            if queue is None:
                # Everybody was asked. Who still has hope was not, since nobody of that shape waits.
                cluster.freed.clear()
                shapes.wake(hopeful)
                break
            if queue.rank <= above_rank:
                break
            candidates: Candidates = queue.candidates
            try:
                best = candidates.best(1 + _RUNNERS_UP)
                if best:
                    placed.append(self._place_next(queue, candidates, best))
            except Exception as error:
                raise PlacingFailed(error, queue.shape) from error
            if best:
                if not candidates.asleep:
                    shapes.woke(candidates)
                if hopeful:
                    hopeful = shapes.still_hopeful(hopeful, cluster.node_at(best[0][0]))
            else:
                shapes.put_to_sleep(candidates)
                hopeful &= ~(1 << candidates.number)

    def _place_next(self, queue: Queue, candidates: Candidates, best: list[Found]) -> Placement:
        waiting = self.backlog.pop(queue)
        if candidates.demand.nodes > 1:
            return self._book_gang(waiting, candidates, best, queue.account)
        avoided = self.avoided.of(waiting.job_id)
        if not avoided or len(best) == 1:
            return self._book(waiting, candidates, best, queue.account)
        rows = [self.cluster.node(node_id).row for node_id in avoided if node_id in self.cluster]
        # So many that there is one beside all of those, if there is any.
        best = candidates.best(len(rows) + 1 + _RUNNERS_UP)
        # Where it failed last comes last. Sorting is stable, so the others stay in the order of their scores.
        chosen = sorted(best, key=lambda found: rows.index(found[0]) if found[0] in rows else -1)
        placement = self._book(waiting, candidates, chosen[: 1 + _RUNNERS_UP], queue.account)
        better = best[: best.index(chosen[0])]
        return placement._replace(passed_over=tuple([self._runner_up(row, score) for row, score in better]))

    # What is kept -----------------------------------------------------------------------------------------------------

    def _place_claimants(self, placed: list[Placement], limit: int) -> None:
        """Give clear places to those for whom they were kept, whatever is due to others of the same priority."""
        clear = self.claims.settle(self.backlog)
        members = Counter(claim.job_id for claim in clear)
        for claim in clear:
            if len(placed) == limit:
                return
            if claim.member or members[claim.job_id] < claim.waiting.resources.nodes:
                continue  # of a gang, the first speaks for all
            own = next(queue for queue in self.backlog if claim.job_id in queue)
            if not own.admitted and any(self.cluster.node_of(name) is not None for name in claim.awaited):
                continue  # of what its project owns, it waits for places on other nodes that were borrowed
            nodes = [self.cluster.node(one.node_id) for one in self.claims.of(claim.job_id)]
            self.claims.drop(claim.job_id)
            urgent = [queue for queue in self.backlog if queue.rank > claim.rank and not queue.is_held_back]
            if own.is_held_back or any(self._room_for(queue, node) for queue in urgent for node in nodes):
                continue
            with blaming(own.shape):
                if len(nodes) > 1:
                    self._place_gang(claim, own, placed)
                else:
                    self._place_on(nodes[0], claim.waiting, placed)

    def _place_gang(self, claim: Claim, own: Queue, placed: list[Placement]) -> None:
        """Its nodes are clear: it gets the best there are by now."""
        candidates = self._candidates(own.resources, own.applicant)
        if best := candidates.best(1):
            self.backlog.remove(claim.job_id)
            placed.append(self._book_gang(claim.waiting, candidates, best))

    def _claims_fell(self, placed: list[Placement], limit: int) -> bool:
        """Whether somebody who had a claim found another place, or has his own only now, since an owner for whom quotas
        waited has got his: what was kept is free then.
        """
        before = len(self.claims)
        for placement in placed:
            self.claims.drop(placement.job_id)
        if placed:
            self._place_claimants(placed, limit)
        return len(self.claims) < before

    def _take_kept_for_lesser(self, placed: list[Placement], limit: int, rank: int) -> None:
        """Who is above this rank, and found no other place, takes what is kept for jobs up to it, the least urgent
        first.
        """
        for claim in sorted(self.claims, key=lambda claim: claim.rank):
            node = self._keeping(claim) if claim.rank <= rank else None
            if node is not None:
                for queue in list(takewhile(lambda queue: queue.rank > rank, self.backlog)):
                    self._place_all_on_kept(queue, claim, node, placed, limit)

    def _backfill(self, placed: list[Placement], limit: int, now: float | None) -> None:
        """What is kept goes to whoever is more urgent than the job that it is kept for, or ends before that can start.

        Fair shares alone do not take it away again: who waits for much at once would never get it together.
        """
        for claim in self.claims:
            node = self._keeping(claim)
            if node is None:
                continue
            seconds = claim.seconds_left(now)
            for queue in list(self.backlog):
                ends = queue.time_limit_seconds is not None and queue.time_limit_seconds <= seconds
                if queue.rank > claim.rank or (ends and claim.job_id not in queue):
                    self._place_all_on_kept(queue, claim, node, placed, limit)

    def _keeping(self, claim: Claim) -> Node | None:
        """The node, if it takes work and anything is kept there."""
        node = self.cluster.node(claim.node_id) if claim.node_id in self.cluster else None
        return node if node is not None and node.kept.get(claim.job_id) and takes_work(node) else None

    def _place_all_on_kept(self, queue: Queue, claim: Claim, node: Node, placed: list[Placement], limit: int) -> None:
        while len(placed) < limit and self._place_on_kept(queue, claim, node, placed):
            pass

    def _place_on_kept(self, queue: Queue, claim: Claim, node: Node, placed: list[Placement]) -> bool:
        with blaming(queue.shape):
            return self._placed_on_kept(queue, claim, node, placed)

    def _placed_on_kept(self, queue: Queue, claim: Claim, node: Node, placed: list[Placement]) -> bool:
        if (
            queue.head is None
            or queue.is_held_back
            or not self._room_for(queue, without(node, (), kept_for=(claim.job_id,)))
        ):
            return False
        self.cluster.keep(node, claim.job_id, None)
        found = self._place_on(node, queue.find(queue.head[1]), placed)
        self.claims.keep_on(node.node_id)
        return found

    def _room_for(self, queue: Queue, room: Node) -> bool:
        """Whether the next of a queue would fit on a node that takes work, or on a copy of it."""
        with blaming(queue.shape):
            candidates, demand = self._candidates(queue.resources, queue.applicant), demand_of(queue.resources)
        if demand.nodes > 1:
            return False
        if room.slots_free < 1 or room.cpus_free < demand.cpus or room.ram_free_bytes < demand.ram_bytes:
            return False
        return candidates.could_run(room) and candidates.gpus_on(room) is not None

    def _place_on(self, node: Node, waiting: Waiting, placed: list[Placement]) -> bool:
        """Place a waiting job on this node. False: it does not fit there."""
        candidates = self._candidates(waiting.resources, waiting.applicant)
        score = candidates.score_on(node)
        if score is None:
            return False
        self.backlog.remove(waiting.job_id)
        placed.append(self._book(waiting, candidates, [(node.row, score)]))
        return True

    def _candidates(self, resources: Resources, applicant: Applicant) -> Candidates:
        return self._shapes.of(resources, self.cluster.refusing(resources, applicant))

    def undo(self, placement: Placement) -> None:
        """The record refused a placement: free its place and let the job wait where it waited."""
        self.drop(placement)
        self.backlog.add(placement.waiting)

    def drop(self, placement: Placement) -> None:
        """The record knows better, and the job waits no longer: free its place."""
        for member in placement.members:
            self.cluster.release(holder(placement.job_id, member.rank))
        self.backlog.discharge(placement.job_id)

    def _drop_spare_shapes(self) -> None:
        if len(self._shapes) > 2 * self.backlog.kinds + _SPARE_SHAPES:
            self._shapes.keep_only({(queue.shape, queue.refused) for queue in self.backlog})
            _forget_bits(self.backlog.root)

    def _book_gang(
        self, waiting: Waiting, candidates: Candidates, best: list[Found], account: Account | None = None
    ) -> Placement:
        first, *others = [
            self._book(waiting, candidates, [found], account, rank=rank) for rank, found in enumerate(best)
        ]
        members = (first, *others)
        self.backlog.charge(
            waiting, taken_together(candidates.demand, [one.gpu_memory_bytes for one in members]), account
        )
        return first._replace(others=tuple(others))

    def _book(
        self,
        waiting: Waiting,
        candidates: Candidates,
        best: list[Found],
        account: Account | None = None,
        rank: int = 0,
    ) -> Placement:
        """Places one job, or one member of a gang, which is then still to be charged."""
        cluster, demand = self.cluster, candidates.demand
        (row, score), *runners_up = best
        node = cluster.node_at(row)
        positions = candidates.gpus_on(node)
        assert positions is not None
        taken = demand.gpu_memory_bytes * len(positions) or sum([node.gpu_memory[at] for at in positions])
        placement = Placement(
            waiting,
            node.node_id,
            node.name,
            node.incarnation,
            tuple([node.gpu_indexes[at] for at in positions]),
            taken,
            demand.cpus,
            demand.ram_bytes,
            score,
            parts(node, demand, positions, candidates.preferred_at(node)),
            tuple([self._runner_up(row, score) for row, score in runners_up]),
            candidates.last_resort,
            rank,
        )
        cluster.take_at(node, holder(waiting.job_id, rank), demand, positions)
        if demand.nodes == 1:
            gpus = 0 if demand.shared else len(positions)
            self.backlog.charge(waiting, (gpus, taken, demand.cpus, demand.ram_bytes), account)
        return placement

    def _runner_up(self, row: int, score: float) -> RunnerUp:
        node = self.cluster.node_at(row)
        return RunnerUp(node.node_id, node.name, score)


class _Walk:
    """One pass over the backlog. What was found to fit nowhere is passed over once, and not looked at again.

    It relies on two things. The shapes that may fit only become fewer while it lasts. And who is served moves back or
    stays: a queue's next head is younger, and its owner and project have had more than before. Only one may have been
    passed over and be able now: whom quotas did not admit until a promised place was taken. He comes after all others.
    """

    def __init__(self, root: Branch, shapes: Shapes, cluster: Cluster) -> None:
        self._root, self._shapes, self._cluster = root, shapes, cluster
        #: where in the order of each branch there may still be somebody
        self._at: dict[Branch, int] = {}

    def next(self, able: int) -> Queue | None:
        """Who is served next, of those whose shape is among these; None: nobody."""
        branch = self._root
        if branch.shapes is None:
            self._find_out(branch)
        if not branch.shapes & able:  # type: ignore[operator]
            return None
        positions = self._at
        while order := branch.order:
            at = start = positions.get(branch, 0)
            while at < len(order) and not order[at][2].shapes & able:
                at += 1
            if at == len(order):
                at = next(number for number, place in enumerate(order) if place[2].shapes & able)
            if at != start:
                positions[branch] = at
            branch = order[at][2]
        return branch  # type: ignore[return-value]

    def _find_out(self, branch: Branch) -> None:
        """Whose shapes wait below, for a branch where that has changed: none of an owner who may not run more, and
        none that quotas do not admit.
        """
        if branch.account is not None and branch.account.person is not None and branch.account.person.is_full:
            branch.shapes = 0
            return
        shapes = 0
        for child in branch.children.values():
            if child.shapes is None:
                if isinstance(child, Branch):
                    self._find_out(child)
                else:
                    self._find_out_one(child)
            shapes |= child.shapes or 0
        branch.shapes = shapes

    def _find_out_one(self, queue: Queue) -> None:
        try:
            queue.refused = self._cluster.refusing(queue.resources, queue.applicant)
            queue.candidates = self._shapes.of(queue.resources, queue.refused)
        except Exception as error:
            raise PlacingFailed(error, queue.shape) from error
        queue.shapes = 1 << queue.candidates.number if queue.admitted else 0


def _forget_bits(branch: Branch) -> None:
    branch.shapes = None
    for child in branch.children.values():
        if isinstance(child, Branch):
            _forget_bits(child)
        else:
            child.shapes = None
