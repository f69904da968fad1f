"""Places that are kept, each for one waiting job that fits nowhere now.

A place is being cleared for an urgent job (`preemption.py`), or is reserved for whoever is the next in line
(`reservations.py`). Either way some attempts on the node are awaited. What is free there, and will not come from them,
is booked as kept, so that nobody else takes it; what they hold is booked as soon as they end. Otherwise a half cleared
place would go to whoever fits into it.

A gang has a claim on each of its nodes, which stand and fall together; the gang is placed once all of them are clear.

Pure: `settle` brings the books in line with what has changed since, and is called before anything is placed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from broker.scheduler.backlog import Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.holder import holder
from broker.scheduler.node import Kept, Node
from broker.scheduler.places import Wanted, fits, positions, take, takes_work, usable_gpus, without
from broker.scheduler.preemption import Clearing
from cyxwiz_tasks.capability import Capability

#: beyond its time limit, what the start of an attempt, its end, and the word of it may take
ENDING_SECONDS = 10.0


class Claim(NamedTuple):
    """A place on one node, kept for one waiting job, or for one member of a gang."""

    waiting: Waiting
    node_id: str
    #: what the node was when the place was chosen: a node that describes itself anew keeps nothing
    capability: Capability
    wanted: Wanted
    #: live attempts there, by what holds their places: once they have ended, the job fits; and elsewhere, those of whom
    #: quotas want it, or that other members of the gang wait for
    awaited: frozenset[str]
    #: the awaited ones were told to end
    clearing: bool
    #: when the last of them ends at the latest, by the clock of whoever planned it; None: nobody knows
    starts_at: float | None = None
    #: of a gang
    member: int = 0

    @property
    def key(self) -> str:
        return holder(self.waiting.job_id, self.member)

    @property
    def job_id(self) -> str:
        return self.waiting.job_id

    @property
    def rank(self) -> int:
        return self.waiting.priority.rank

    def seconds_left(self, now: float | None) -> float:
        """How long an attempt may run that is over before this job starts; 0: nobody can know."""
        return self.starts_at - now - ENDING_SECONDS if self.starts_at is not None and now is not None else 0.0


def claim_on(
    node: Node,
    waiting: Waiting,
    wanted: Wanted,
    awaited: Iterable[str],
    *,
    clearing: bool = False,
    starts_at: float | None = None,
) -> Claim:
    """A claim to the place that is there once these have ended."""
    return Claim(waiting, node.node_id, node.capability, wanted, frozenset(awaited), clearing, starts_at)


class _Jobs(Protocol):
    def __contains__(self, job_id: str, /) -> bool: ...


class Claims:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        #: by job; those of a gang's other members by their keys
        self._by_job: dict[str, Claim] = {}

    def __len__(self) -> int:
        return len(self._by_job)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._by_job

    def __iter__(self) -> Iterator[Claim]:
        return iter(list(self._by_job.values()))

    def get(self, job_id: str) -> Claim | None:
        return self._by_job.get(job_id)

    def of(self, job_id: str) -> list[Claim]:
        """All that a job has: several for a gang."""
        first = self._by_job.get(job_id)
        members = range(first.waiting.resources.nodes if first is not None else 0)
        return [self._by_job[holder(job_id, member)] for member in members]

    def clears(self, job_id: str) -> bool:
        """Whether a place is being cleared for this job."""
        claim = self._by_job.get(job_id)
        return claim is not None and claim.clearing

    def clear(self, waiting: Waiting, clearing: Clearing) -> None:
        """A place is being cleared for this job, or one for each member of a gang."""
        self.drop(waiting.job_id)
        for member, place in enumerate(clearing.places):
            node = self._cluster.node(place.node_id)
            claim = claim_on(node, waiting, place.wanted, clearing.awaited, clearing=True)
            self._by_job[holder(waiting.job_id, member)] = claim._replace(member=member)

    def reserve(self, reservations: Iterable[Claim]) -> None:
        """These are reserved from now on, and no others. What is being cleared stays."""
        new = {claim.key: claim for claim in reservations if not self.clears(claim.job_id)}
        places = {(claim.job_id, claim.node_id) for claim in new.values()}
        for claim in self:
            if not claim.clearing:
                del self._by_job[claim.key]
                # Where the node is the same, `settle` compares what is kept with what should be.
                if (claim.job_id, claim.node_id) not in places:
                    self._release(claim)
        self._by_job |= new

    def drop(self, job_id: str) -> None:
        """Nothing is kept for this job any more, if anything was."""
        for claim in self.of(job_id):
            del self._by_job[claim.key]
            self._release(claim)

    def settle(self, waiting: _Jobs) -> list[Claim]:
        """Keep what is to be kept by now. Returns the claims whose place is clear: all of it is kept until they are
        dropped.

        `waiting` are the jobs that wait; a claim of another, or to a place that is gone, is dropped.
        """
        for claim in self:
            # Whoever has given his place back, and gets another one, is not awaited any more.
            if gone := {name for name in claim.awaited if self._cluster.node_of(name) is None}:
                self._by_job[claim.key] = claim._replace(awaited=claim.awaited - gone)
        clear: list[Claim] = []
        for node_id in dict.fromkeys(claim.node_id for claim in self._by_job.values()):
            clear += self._settle_on(node_id, waiting)
        # A gang's whose last place is gone is none any more.
        return [claim for claim in clear if self._by_job.get(claim.key) is claim]

    def keep_on(self, node_id: str) -> None:
        """Something was taken on this node: keep what is left of what is to be kept there."""
        self._settle_on(node_id, self._by_job)

    def promised(self, rank: int | None = None, besides: str = "") -> dict[str, list[Wanted]]:
        """By node, what is being cleared for others than this job, and what is reserved for such of this rank or above;
        None: nothing of that.
        """
        found: dict[str, list[Wanted]] = {}
        for claim in self._by_job.values():
            counts = claim.clearing or (rank is not None and claim.rank >= rank)
            if counts and claim.job_id != besides:
                found.setdefault(claim.node_id, []).append(claim.wanted)
        return found

    def _settle_on(self, node_id: str, waiting: _Jobs) -> list[Claim]:
        cluster, clear = self._cluster, []
        # What is being cleared comes first: some were asked to leave for it, and reservations move to other nodes soon.
        here = sorted((c for c in self if c.node_id == node_id), key=lambda claim: (not claim.clearing, -claim.rank))
        node = cluster.node(node_id) if node_id in cluster else None
        room = without(node, (), kept_for=node.kept) if node is not None else None
        for claim in here:
            if claim.key not in self._by_job:
                continue  # another member's place is gone
            if room is None or node is None or not self._stands(claim, node, room, waiting):
                self.drop(claim.job_id)
                continue
            if fits(room, claim.wanted):
                if takes_work(node):
                    clear.append(claim)
                kept = _whole(room, claim.wanted)
                take(room, claim.job_id, claim.wanted)
            else:
                kept = _share(room, claim)
                room.keep(claim.job_id, kept)
            cluster.keep(node, claim.job_id, kept or None)
        return clear

    def _stands(self, claim: Claim, node: Node, room: Node, waiting: _Jobs) -> bool:
        if claim.job_id not in waiting or node.capability is not claim.capability:
            return False
        if node.cordon is not None or node.opens_at is not None:
            return False
        # Where all have gone and it does not fit, somebody else was faster: another place is looked for.
        return not claim.clearing or fits(room, claim.wanted) or any(id in node.holdings for id in claim.awaited)

    def _release(self, claim: Claim) -> None:
        if claim.node_id in self._cluster:
            self._cluster.keep(self._cluster.node(claim.node_id), claim.job_id, None)


def _whole(room: Node, wanted: Wanted) -> Kept:
    """All that the job needs."""
    demand, gpus = wanted.demand, positions(room, wanted) or ()
    sizes = tuple((at, demand.gpu_memory_bytes if demand.shared else room.gpu_memory[at]) for at in gpus)
    return Kept(1, demand.cpus, demand.ram_bytes, sizes)


def _share(room: Node, claim: Claim) -> Kept:
    """Of what is free, as much as the job needs beyond what the awaited ones give back."""
    demand = claim.wanted.demand
    coming = [room.holdings[id].demand for id in claim.awaited if id in room.holdings]
    cpus = demand.cpus - sum(other.cpus for other in coming)
    ram_bytes = demand.ram_bytes - sum(other.ram_bytes for other in coming)
    free = [(at, max(0, room.gpu_free[at])) for at in _gpus(room, claim)]
    return Kept(
        slots=min(0 if coming else 1, max(0, room.slots_free)),
        cpus=max(0, min(cpus, room.cpus_free)),
        ram_bytes=max(0, min(ram_bytes, room.ram_free_bytes)),
        gpu_bytes=tuple((at, min(size, demand.gpu_memory_bytes) if demand.shared else size) for at, size in free),
    )


def _gpus(room: Node, claim: Claim) -> list[int]:
    """Those that the job gets then, beside what is kept for others. GPUs that are in use now are taken first: what is
    free already serves others meanwhile.
    """
    count, wanted = claim.wanted.demand.gpus, claim.wanted
    if not count:
        return []
    then, now = without(room, claim.awaited.intersection(room.holdings)), set(usable_gpus(room, wanted))
    found = sorted(usable_gpus(then, wanted), key=lambda at: (at in now, then.gpu_free[at]))
    # On what is kept another may run that ends in time: the rest of it stays kept.
    found += sorted(set(wanted.admitted).difference(found), key=lambda at: -then.gpu_free[at])
    return sorted(found[:count])
