"""One world, played from its first arrival until nothing happens any more."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from broker.scheduler import stopping
from broker.scheduler.backlog import Queue, Waiting
from broker.scheduler.claims import ENDING_SECONDS, Claim
from broker.scheduler.placement import Placement
from broker.scheduler.turn import Turn
from cyxwiz_tasks.protocol.controls import Stop
from db.preemptions import Preemption
from tests.worlds.books import Books, Broken, check_order, shown
from tests.worlds.leading import StandIn, stands_in
from tests.worlds.leaving import Leavings, Run
from tests.worlds.making import Job, Plan, make

_LOST, _ENDS, _LEAVES, _CANCELLED, _ARRIVES, _LOOK, _DUTIES = range(7)
_LOOK_AGAIN_SECONDS = 650.0
#: after a run in which duties did something, they are run again
_AGAIN_SECONDS = 0.5
#: what is to be seen in some hundred worlds, so that a run can tell that it is no empty one
SEEN = (
    *("placed", "gangs", "reserved", "backfilled", "kept promises", "lost", "cancelled", "went on from a checkpoint"),
    *("preempted", "asked to give back", "asked to move", "moved", "moved in vain", "gangs asked"),
    *("gangs that places were cleared for", "cleared in time"),
)


@dataclass
class Promise:
    """A job was told from when on its place is there; void once somebody more urgent came, a place is cleared there for
    somebody else, its project's quota holds it back, an owner takes back what is his, or a node was lost.
    """

    rank: int
    starts_at: float


class World:
    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.plan = plan or make(seed)
        self._chance = random.Random(f"what happens in {seed}")
        self.jobs = {job.waiting.job_id: job for job in self.plan.jobs}
        self.books = Books(self.plan.nodes)
        self.leader = StandIn(self.plan.settings, self._end_turn)
        self.memory = self.leader.memory
        for name, able in self.plan.nodes.items():
            self.memory.cluster.upsert_node(name, name, able, "1")
        self.memory.backlog.settle(0.0, self.memory.cluster.totals)
        for project, quota in self.plan.quotas.items():
            self.memory.shares.set_quota(project, quota)
        # While somebody waits who could run, somebody runs, and each job does so once, and again after a loss.
        seconds = sum(job.seconds for job in self.plan.jobs)
        self._longest_wait_seconds = (1 + len(self.plan.losses)) * seconds + _LOOK_AGAIN_SECONDS
        self.now = 0.0
        self.runs: dict[str, Run] = {}
        self.waited: dict[str, float] = {}
        self.promises: dict[str, Promise] = {}
        self.leavings = Leavings(self.plan, self.books, self.memory, self.runs)
        self.counts = self.leavings.seen
        #: which duty is at work
        self._duty = ""
        #: seconds of work that a job need not do again
        self._done: Counter[str] = Counter()
        self._attempts: Counter[str] = Counter()
        self._over: set[str] = set()
        self._events: list[tuple[float, int, str, int]] = [
            *((job.arrives, _ARRIVES, job.waiting.job_id, 0) for job in self.plan.jobs),
            *(
                (job.cancelled, _CANCELLED, job.waiting.job_id, 0)
                for job in self.plan.jobs
                if job.cancelled is not None
            ),
            *((at, _LOST, name, 0) for name, at in self.plan.losses.items()),
        ]

    def play(self) -> dict[str, int]:
        """What there was, by kind. Raises Broken."""
        heapify(self._events)
        with stands_in(lambda: self.now, self._note, self.leavings.times.__getitem__):
            while self._events:
                self._pass_to_next_event()
            self._check_nobody_was_forgotten()
            self._do_duties()
            self._check_nothing_is_left()
        return self.counts

    def _pass_to_next_event(self) -> None:
        self.now = self._events[0][0]
        due = False
        with self.leader.turn() as turn:
            while self._events and self._events[0][0] == self.now:
                _, what, name, attempt = heappop(self._events)
                due |= what in (_DUTIES, _LOOK)
                self._happen(turn, what, name, attempt)
            self.memory.settle()
        lag = self.plan.lag_seconds
        if due or not lag:
            self._do_duties()
        elif not any(what == _DUTIES for _, what, _, _ in self._events):
            heappush(self._events, (self.now + self._chance.uniform(0, lag), _DUTIES, "", 0))
        # Who was blocked for long enough by then has a place reserved, whether or not anything happens.
        if (
            len(self.memory.backlog)
            and self.runs
            and (not self._events or self._events[0][0] > self.now + _LOOK_AGAIN_SECONDS)
        ):
            heappush(self._events, (self.now + _LOOK_AGAIN_SECONDS, _LOOK, "", 0))

    # What happens -----------------------------------------------------------------------------------------------------

    def _happen(self, turn: Turn, what: int, name: str, attempt: int) -> None:
        if what == _ARRIVES:
            self._wait(self.jobs[name])
        elif what == _LOST:
            self._lose(name)
        elif what == _CANCELLED and name not in self._over:
            self._cancel(turn, name)
        elif what in (_ENDS, _LEAVES) and name in self.runs and self.runs[name].number == attempt:
            if what == _LEAVES:
                self._leave(name)
            else:
                self._end(name)
                self._over.add(name)

    def _wait(self, job: Job) -> None:
        self.waited[job.waiting.job_id] = self.now
        self.memory.wait(job.waiting)

    def _end(self, job_id: str) -> Run:
        """Its places are free again, on all its nodes."""
        self.books.release(job_id)
        self.memory.ended(job_id)
        return self.runs.pop(job_id)

    def _leave(self, job_id: str) -> None:
        """Who was told to has ended; who writes checkpoints wrote one, unless there was no time for it."""
        job, run = self.jobs[job_id], self._end(job_id)
        if run.cancelled:
            self._over.add(job_id)
            return
        if job.saves_every_seconds is not None and self._chance.random() < 0.8:
            run.saved_at = self.now
        self._keep_what_is_saved(run)
        self.leavings.times[job_id] += 1
        self._wait(job)

    def _lose(self, node: str) -> None:
        self.counts["lost"] += 1
        self.promises.clear()
        self.leavings.lost(node)
        gone = self.books.lose(node)
        self.memory.cluster.remove_node(node)
        for job_id in sorted(gone):
            run = self._end(job_id)
            self._keep_what_is_saved(run)
            if run.cancelled:
                self._over.add(job_id)
            else:
                self._wait(self.jobs[job_id])

    def _cancel(self, turn: Turn, job_id: str) -> None:
        self.counts["cancelled"] += 1
        if job_id in self.runs:
            run = self.runs[job_id]
            run.leaves = run.cancelled = True
            stopping.cancel(turn, self.memory.live[job_id])
        else:
            self.memory.stop_waiting(job_id)
            self._over.add(job_id)

    def _save(self) -> None:
        """Whoever is to have written a checkpoint by now has, and its node has told of it."""
        for job_id, run in self.runs.items():
            every = self.jobs[job_id].saves_every_seconds
            saves = (self.now - run.started_at) // every if every is not None else 0
            if every is not None and saves:
                run.saved_at = run.started_at + saves * every
                self.memory.live[job_id].saved(run.saved_at)

    def _keep_what_is_saved(self, run: Run) -> None:
        if run.saved_at is not None:
            self._done[run.waiting.job_id] += run.saved_at - run.started_at

    # One turn ---------------------------------------------------------------------------------------------------------

    def _do_duties(self) -> None:
        self._save()
        did = False
        for duty in self.leader.duties:
            self._duty = type(duty).__name__
            done = duty.run_once()
            did |= any(done.values()) and self._duty != "Reserve"
            self._look_at_promises()
        if did:
            heappush(self._events, (self.now + _AGAIN_SECONDS, _DUTIES, "", 0))

    def _note(self, noted: Sequence[Preemption]) -> None:
        self.leavings.asked(self._duty, noted, self.now)
        for one in noted:
            self._longest_wait_seconds += self.jobs[one.job_id].seconds + self.plan.settings.preempt_grace_seconds

    def _end_turn(self, stops: Sequence[tuple[str, Stop]]) -> None:
        told = defaultdict[str, set[str]](set)
        for node, stop in stops:
            if stop.job not in told:
                leaves_at = self.now + self._chance.uniform(0, stop.grace_seconds)
                heappush(self._events, (leaves_at, _LEAVES, stop.job, self.runs[stop.job].number))
            told[stop.job].add(node)
        self.leavings.check_told(told)
        self._place()

    def _place(self) -> None:
        backlog, claims = self.memory.backlog, list(self.memory.claims)
        held_back = {queue.head[1] for queue in backlog if queue.head and queue.is_held_back}
        promised = set(self.memory.shares.quotas.promised)
        self._void_what_quotas_hold_back()
        self.leavings.look_at_quotas()
        placed = self.memory.placer.place(1000, self.now)
        for one in placed:
            self.books.take(one)
            self._start(one)
        if not self.counts["lost"]:
            self.books.check_quotas(self.plan.quotas)
        claimants = {claim.job_id for claim in claims}
        check_order([one for one in placed if one.job_id not in claimants], backlog)
        for queue in backlog:
            if queue.head is not None and not queue.is_held_back:
                self._check_has_no_room(queue)
                if queue.head[1] not in held_back:
                    # Who takes back what his project owns had a right to it before anybody more urgent who borrows.
                    others = [one for one in placed if one.job_id not in promised]
                    self._check_was_not_passed(queue, others, claims)
        self.leavings.look(placed)

    def _start(self, one: Placement) -> None:
        job_id, rank = one.job_id, one.waiting.priority.rank
        self._attempts[job_id] += 1
        number = self._attempts[job_id]
        self.runs[job_id] = Run(one.waiting, number, self.now)
        tokens = [100 * number + member.rank for member in one.members]
        if one.others:
            self.memory.assigned_gang(one, tokens, number)
        else:
            self.memory.assigned(one, tokens[0], number)
        self.counts["placed"] += 1
        self.counts["gangs"] += len(one.members) > 1
        self.counts["went on from a checkpoint"] += self._done[job_id] > 0
        left_seconds = self.jobs[job_id].seconds - self._done[job_id]
        heappush(self._events, (self.now + left_seconds, _ENDS, job_id, number))
        if self.now - self.waited[job_id] > self._longest_wait_seconds:
            raise Broken(f"{shown(one.waiting)} waited for {self.now - self.waited[job_id]:.0f} s")
        promise = self.promises.pop(job_id, None)
        if promise is not None:
            self.counts["kept promises"] += 1
            if self.now > promise.starts_at:
                raise Broken(f"{shown(one.waiting)} was to start by {promise.starts_at}, and did at {self.now}")
        self._outrank(rank)

    def _outrank(self, rank: int) -> None:
        self.promises = {job_id: promise for job_id, promise in self.promises.items() if promise.rank >= rank}

    def _void_what_quotas_hold_back(self) -> None:
        for queue in self.memory.backlog:
            if queue.is_held_back:
                self.promises = {job_id: kept for job_id, kept in self.promises.items() if job_id not in queue}

    def _check_has_no_room(self, queue: Queue) -> None:
        """Nobody waits for what is free."""
        waiting = queue.find(queue.head[1])  # type: ignore[index]
        rooms = [name for name in self.books.could_run(waiting) if self._has_room(name, queue)]
        is_reserved = waiting.job_id in self.memory.claims and waiting.resources.nodes > 1
        if len(rooms) >= waiting.resources.nodes and not is_reserved:
            raise Broken(f"{shown(waiting)} waits, and there is room for it on {rooms}")

    def _check_was_not_passed(self, queue: Queue, placed: list[Placement], claims: list[Claim]) -> None:
        """Nobody less urgent has what he needs, but who ends before the one starts for whom the place is kept."""
        waiting = queue.find(queue.head[1])  # type: ignore[index]
        if waiting.resources.nodes > 1:
            return
        quotas = self.memory.shares.quotas
        for one in placed:
            other = one.waiting
            if other.priority.rank >= queue.rank:
                continue
            if not quotas.supposing([(other.project, other.amounts, -1)]).admits(queue.project, queue.amounts):
                continue  # he had no right to what that one took
            for name in {member.node_id for member in one.members}.intersection(self.books.could_run(waiting)):
                here = [claim for claim in claims if claim.node_id == name]
                if self._has_room(name, queue, one.job_id):
                    if not any(self._is_backfilled(other, waiting, claim) for claim in here):
                        raise Broken(f"{shown(other)} took the place of {shown(waiting)} on {name}")
                    self.counts["backfilled"] += 1

    def _is_backfilled(self, placed: Waiting, passed: Waiting, claim: Claim) -> bool:
        """Whether a job may use what is kept for the one with this claim, and the one that it passed may not."""
        may_use = self._ends_by(placed, claim.starts_at)
        is_more_urgent = passed.priority.rank > claim.rank
        return may_use and (
            claim.job_id == passed.job_id or not (is_more_urgent or self._ends_by(passed, claim.starts_at))
        )

    def _ends_by(self, waiting: Waiting, moment: float | None) -> bool:
        limit = waiting.time_limit_seconds
        return moment is not None and limit is not None and self.now + limit + ENDING_SECONDS <= moment

    def _has_room(self, node: str, queue: Queue, without: str | None = None) -> bool:
        """Beside what is kept there for others."""
        job_id = queue.head[1]  # type: ignore[index]
        there = self.memory.cluster.node(node).kept.items()
        kept = [kept for name, kept in there if name.partition(".")[0] != job_id]
        return self.books.has_room(node, queue.find(job_id), kept, (without,) if without is not None else ())

    def _look_at_promises(self) -> None:
        """Who gets a reservation with a known beginning is promised it."""
        claims = list(self.memory.claims)
        if self._duty == "GiveBack" and self.memory.shares.quotas.promised:
            self.promises.clear()
        # Where a place is being cleared, no other one is reserved meanwhile.
        cleared = {claim.node_id for claim in claims if claim.clearing}
        for claim in claims:
            if not claim.clearing and claim.node_id in cleared:
                self.promises.pop(claim.job_id, None)
        for claim in claims:
            self._outrank(claim.rank)
        self._void_what_quotas_hold_back()
        for claim in claims if self._duty == "Reserve" else ():
            if not claim.clearing and claim.starts_at is not None and claim.job_id not in self.promises:
                self.promises[claim.job_id] = Promise(claim.rank, claim.starts_at)
                self.counts["reserved"] += 1

    # The end ----------------------------------------------------------------------------------------------------------

    def _check_nobody_was_forgotten(self) -> None:
        """Nothing runs any more: who still waits could run nowhere, or not within his project's quota."""
        if self.runs:
            raise Broken(f"{sorted(self.runs)} run for ever")
        for queue in self.memory.backlog:
            waiting = queue.find(queue.head[1])  # type: ignore[index]
            fits = len(self.books.could_run(waiting)) >= waiting.resources.nodes
            if fits and queue.admitted:
                raise Broken(f"{shown(waiting)} starves")

    def _check_nothing_is_left(self) -> None:
        memory = self.memory
        kept = {node.node_id: node.kept for node in memory.cluster if node.kept}
        held = {node.node_id: node.holdings for node in memory.cluster if node.holdings}
        left = {"attempts": memory.live, "claims": list(memory.claims), "kept": kept, "held": held}
        left["promised"] = memory.shares.quotas.promised
        left["cleared"] = [job_id for job_id, one in self.leavings.cleared.items() if not one.void]
        if any(left.values()):
            raise Broken(f"nothing runs, and this is left: { ({name: what for name, what in left.items() if what}) }")
