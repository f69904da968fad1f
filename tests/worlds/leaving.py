"""Who is asked to leave for whom, whether that is right, and what becomes of the place that is cleared.

Judged by the world's own books, from what docs/scheduling.md promises: of those who are asked, of the place until the
job for which it was cleared is there, and of who has moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from broker.scheduler.backlog import Waiting
from broker.scheduler.demand import demand_of
from broker.scheduler.memory import Memory
from broker.scheduler.placement import Placement
from cyxwiz_tasks.states import Priority
from db.preemptions import Preemption
from tests.worlds.books import Books, Broken, shown
from tests.worlds.making import Plan

#: of what a move gains, at most this share may be lost; where nobody knows what it gains, it counts for this time; and
#: what starting again takes
_MOST_LOST, _UNKNOWN_SECONDS, _RESTART_SECONDS = 0.1, 3600.0, 30.0


@dataclass
class Run:
    """A job's attempt under way."""

    waiting: Waiting
    number: int
    started_at: float
    saved_at: float | None = None
    #: somebody has decided that it has to end; and all its nodes were told
    leaves: bool = False
    told: bool = False
    #: and not because somebody needs its place
    cancelled: bool = False


@dataclass
class Cleared:
    """A place, or all of a gang, for which others were asked to leave."""

    waiting: Waiting
    nodes: list[str]
    #: those who were asked, and those who had been before for somebody else
    awaited: set[str]
    duty: str
    #: somebody more urgent took it, or quotas have something against it by now
    void: bool = False


@dataclass
class Leavings:
    plan: Plan
    books: Books
    memory: Memory
    runs: Mapping[str, Run]
    #: by job: how often it gave its place back
    times: Counter[str] = field(default_factory=Counter)
    #: by the job for which it was cleared
    cleared: dict[str, Cleared] = field(default_factory=dict)
    #: of moves: those who were asked, until the job is there for which they moved
    moving: dict[str, list[str]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    # Who is asked -----------------------------------------------------------------------------------------------------

    def asked(self, duty: str, noted: Sequence[Preemption], now: float) -> None:
        """A duty asked these to leave, all on behalf of one job. Raises Broken."""
        [claimant], node_ids = {one.claimant for one in noted}, noted[0].node_ids
        waiting, victims = self.memory.backlog.find(claimant), [one.job_id for one in noted]
        if waiting is None:
            raise Broken(f"{victims} are asked to leave for {claimant}, which does not wait")
        what = f"{duty}: {victims} are asked to leave {node_ids} for {shown(waiting)}"
        _check(len(set(node_ids)) == waiting.resources.nodes == len(node_ids), f"{what}: so many nodes?")
        _check(set(victims) <= self.runs.keys(), f"{what}: some do not run")
        _check(not any(self.runs[one].leaves for one in victims), f"{what}: some had been told before")
        _check(all(name in self.books.could_run(waiting) for name in node_ids), f"{what}: it cannot run there")
        before = self.cleared.get(claimant)
        _check(before is None or before.void or not self._awaited(before), f"{what}: others were asked for it before")
        rules = {"Preempt": self._check_preempted, "GiveBack": self._check_given_back, "Consolidate": self._check_moved}
        rules[duty](waiting, victims, node_ids, what, now)
        leaving = {name for name, run in self.runs.items() if run.leaves}
        self._check_needed(waiting, victims, node_ids, leaving, duty, what)
        awaited = {name for name in leaving if self.books.nodes_of(name).intersection(node_ids)} | set(victims)
        self.cleared[claimant] = Cleared(waiting, node_ids, awaited, duty)
        if duty == "Consolidate":
            self.moving[claimant] = victims
        for name in victims:
            self.runs[name].leaves = True
            self.seen["gangs asked"] += self.runs[name].waiting.resources.nodes > 1
        names = {"Preempt": "preempted", "GiveBack": "asked to give back", "Consolidate": "asked to move"}
        self.seen[names[duty]] += len(victims)
        self.seen["gangs that places were cleared for"] += len(node_ids) > 1

    def _check_preempted(
        self, waiting: Waiting, victims: Sequence[str], node_ids: Sequence[str], what: str, now: float
    ) -> None:
        settings = self.plan.settings
        _check(settings.preempt_from != "never", f"{what}: nobody may")
        _check(waiting.priority.rank >= Priority(settings.preempt_from).rank, f"{what}: it may not")
        for name in victims:
            _check(self.runs[name].waiting.priority.rank < waiting.priority.rank, f"{what}: {name} is as urgent")
            _check(self.times[name] < settings.preempt_limit, f"{what}: {name} was {self.times[name]} times")

    def _check_given_back(
        self, waiting: Waiting, victims: Sequence[str], node_ids: Sequence[str], what: str, now: float
    ) -> None:
        wanted, own = _gpus(waiting), self._own(waiting.project)
        _check(0 < wanted <= own - self.books.gpus_of(waiting.project), f"{what}: its project does not own that")
        leaving = [run.waiting for run in self.runs.values() if run.leaves]
        for project in {self.runs[name].waiting.project for name in victims}:
            _check(project != waiting.project, f"{what}: from its own project")
            theirs = [_gpus(self.runs[n].waiting) for n in victims if self.runs[n].waiting.project == project]
            goes_anyway = sum(_gpus(one) for one in leaving if one.project == project)
            borrowed = self.books.gpus_of(project) - self._own(project)
            # With the last of them, a gang may be, more than what was borrowed may go.
            _check(
                goes_anyway + sum(theirs) - max(theirs) < borrowed,
                f"{what}: {project or 'no project'} borrowed {borrowed}, {goes_anyway} go anyway, and now {theirs}",
            )
        for name in victims:
            limit = self.plan.settings.quota_preemptions
            _check(self.times[name] < limit, f"{what}: {name} did so {self.times[name]} times")

    def _check_moved(
        self, waiting: Waiting, victims: Sequence[str], node_ids: Sequence[str], what: str, now: float
    ) -> None:
        claim, limit = self.memory.claims.get(waiting.job_id), self.plan.settings.consolidate_limit
        if claim is None or claim.clearing:
            raise Broken(f"{what}: it has no reservation")
        gained = _UNKNOWN_SECONDS if claim.starts_at is None else max(0.0, claim.starts_at - now)
        lost, movers = 0.0, [self.runs[name] for name in victims]
        for name, run in zip(victims, movers, strict=True):
            other = run.waiting
            _check(run.saved_at is not None, f"{what}: {name} has no checkpoint")
            _check(other.resources.nodes == 1 == waiting.resources.nodes, f"{what}: gangs do not move, nor for one")
            _check(other.resources.gpus < waiting.resources.gpus, f"{what}: {name} is not smaller")
            _check(other.priority.rank <= waiting.priority.rank, f"{what}: {name} is more urgent")
            _check(self.times[name] < limit, f"{what}: {name} did so {self.times[name]} times")
            assert run.saved_at is not None
            lost += max(1, other.resources.gpus) * (now - run.saved_at + _RESTART_SECONDS)
        worth = _MOST_LOST * gained * waiting.resources.gpus
        _check(lost <= worth + 1e-6, f"{what}: {lost:.0f} s would be lost, which is more than {worth:.0f}")
        kept = {claim.node_id for claim in self.memory.claims if claim.job_id != waiting.job_id}
        elsewhere = self.books.nodes.keys() - kept - set(node_ids)
        _check(self.books.have_room([run.waiting for run in movers], elsewhere), f"{what}: where else do they go?")
        for name, run in zip(victims, movers, strict=True):
            [own] = self.books.nodes_of(name)
            place = self.books.nodes[own].checkpoint_place
            rooms = elsewhere.intersection(self.books.could_run(run.waiting))
            for other_node in (node for node in rooms if self.books.has_room(node, run.waiting)):
                there = self.books.nodes[other_node].checkpoint_place
                _check(place is not None and there == place, f"{what}: {other_node} does not find it: {place}, {there}")

    def _check_needed(
        self,
        waiting: Waiting,
        victims: Sequence[str],
        node_ids: Sequence[str],
        leaving: Collection[str],
        duty: str,
        what: str,
    ) -> None:
        """Once they have gone it fits, and without any one of them it would not. Where something is kept for others on
        these nodes, that counts, too, and the books do not know how.
        """
        gone = {*leaving, *victims}
        _check(self._fits(waiting, node_ids, gone), f"{what}: it does not fit even then")
        _check(self._within_quotas(waiting, gone), f"{what}: its quota would hold it back")
        for claim in self.memory.claims:
            if claim.job_id == waiting.job_id:
                continue
            if claim.clearing and (claim.node_id in node_ids or duty == "GiveBack"):
                return
            if duty == "Preempt" and claim.rank >= waiting.priority.rank and claim.node_id in node_ids:
                return
        for name in victims:
            fewer = gone - {name}
            is_needless = self._fits(waiting, node_ids, fewer) and (
                duty != "GiveBack" or self._within_quotas(waiting, fewer)
            )
            _check(not is_needless, f"{what}: without {name} it fits as well")

    def _within_quotas(self, waiting: Waiting, gone: Collection[str]) -> bool:
        """Whether its project may hold it once these have gone, and others have what they keep for themselves."""
        wanted, quotas = _gpus(waiting), self.plan.quotas
        if not quotas or not wanted:
            return True
        projects = {*quotas, *(run.waiting.project for run in self.runs.values()), waiting.project}
        held = {project: self.books.gpus_of(project, gone) for project in projects}
        held[waiting.project] += wanted
        own = quotas.get(waiting.project)
        if own is not None and own.borrow_gpus is not None and held[waiting.project] > own.gpus + own.borrow_gpus:
            return False
        is_own = own is not None and held[waiting.project] <= own.gpus
        borrows = any(held[name] > self._own(name) for name in projects if name != waiting.project)
        if is_own and not borrows:
            return True
        kept = {
            name: 0 if quota.lend_gpus is None else max(0, quota.gpus - quota.lend_gpus)
            for name, quota in quotas.items()
        }
        idle = sum(max(0, kept[name] - held[name]) for name in quotas if name != waiting.project)
        return not idle or sum(held.values()) + idle <= self.books.gpus

    def _own(self, project: str) -> int:
        quota = self.plan.quotas.get(project)
        return quota.gpus if quota is not None else 0

    def _fits(self, waiting: Waiting, node_ids: Sequence[str], gone: Collection[str]) -> bool:
        return all(self.books.has_room(name, waiting, without=gone) for name in node_ids)

    def check_told(self, told: Mapping[str, set[str]]) -> None:
        """By job, the nodes that were told in this turn that it has to end: all those where it is."""
        for job_id, nodes in told.items():
            there = self.books.nodes_of(job_id)
            _check(nodes == there, f"{job_id} is on {sorted(there)}, and {sorted(nodes)} were told that it must leave")
            self.runs[job_id].told = True
        for job_id, run in self.runs.items():
            _check(run.leaves == run.told, f"{job_id} has to leave: {run.leaves}; it was told: {run.told}")

    # What becomes of the place ----------------------------------------------------------------------------------------

    def _awaited(self, cleared: Cleared) -> set[str]:
        """Those who are still there."""
        return {name for name in cleared.awaited if name in self.runs and self.runs[name].leaves}

    def lost(self, node: str) -> None:
        """Whatever was cleared there, and with it for the other members of a gang, is gone."""
        self.cleared = {job_id: one for job_id, one in self.cleared.items() if node not in one.nodes}

    def look_at_quotas(self) -> None:
        """Before anybody is placed: whom his quota holds back by now, since others have come, has no place to get."""
        for job_id, one in self.cleared.items():
            queue = self.memory.backlog.queue_of(job_id)
            one.void |= queue is not None and queue.is_held_back and not self._awaited(one)

    def look(self, placed: Sequence[Placement]) -> None:
        """After a turn: each place that was cleared is there for whom it was, and he has it once it is free."""
        for job_id, one in list(self.cleared.items()):
            queue = self.memory.backlog.queue_of(job_id)
            if queue is None:
                self.seen["cleared in time"] += job_id in self.runs and not one.void
                del self.cleared[job_id]
                continue
            rank = one.waiting.priority.rank
            one.void |= any(other.waiting.priority.rank > rank for other in placed)
            one.void |= any(claim.rank > rank and claim.node_id in one.nodes for claim in self.memory.claims)
            if one.void:
                continue
            left = self._awaited(one)
            what = f"the place that was cleared on {one.nodes} for {shown(one.waiting)} ({one.duty})"
            _check(self._fits(one.waiting, one.nodes, left), f"{what} went to somebody else")
            _check(bool(left), f"{what} is free, and it waits")
        self._look_at_moves()

    def _look_at_moves(self) -> None:
        for job_id, victims in list(self.moving.items()):
            if any(name in self.runs and self.runs[name].leaves for name in victims):
                continue
            del self.moving[job_id]
            if job_id in self.runs:
                self.seen["moved"] += len(victims)
                self.seen["moved in vain"] += sum(name in self.memory.backlog for name in victims)


def _gpus(waiting: Waiting) -> int:
    demand = demand_of(waiting.resources)
    return 0 if demand.shared else demand.gpus * demand.nodes


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)
