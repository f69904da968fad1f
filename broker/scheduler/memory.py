"""What the leader holds in memory: a copy of the record's nodes, waiting jobs and live attempts.

Only handlers within a turn change it, and only as the turn's transaction changes the record. A transaction that fails
leaves memory ahead of the record, so it is thrown away then and loaded again. Nothing here is known that the record
does not know, except what Redis says of nodes.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from heapq import heappop, heappush
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from broker.scheduler import unreadable
from broker.scheduler.arrays import Arrays
from broker.scheduler.backlog import Backlog, Waiting, coarse
from broker.scheduler.claims import ENDING_SECONDS, Claims
from broker.scheduler.cluster import Cluster
from broker.scheduler.deadlines import Deadlines
from broker.scheduler.demand import demand_of
from broker.scheduler.dependencies import Dependencies
from broker.scheduler.failures import where
from broker.scheduler.fair_share import HALF_LIFE_SECONDS, FairShare
from broker.scheduler.holder import holder
from broker.scheduler.limits import Limits, OwnerLimits, too_many_submissions, too_many_waiting
from broker.scheduler.live import Live, MemberEnd
from broker.scheduler.log_lines import line
from broker.scheduler.messages import Arrival
from broker.scheduler.opening import Opening
from broker.scheduler.parking import Parked
from broker.scheduler.placement import Placement, Placer
from broker.scheduler.quotas import Quota
from broker.scheduler.shares import taken_together
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.early_stopping import SuccessiveHalving
from cyxwiz_tasks.errors import LimitReached
from cyxwiz_tasks.protocol.reports import Ended
from cyxwiz_tasks.resources import PlacementPolicy, Resources
from cyxwiz_tasks.states import AttemptState, Cause, Priority
from db import arrays, attempts, dependencies, gangs, limits, quotas, schedules, usage, waiting_jobs
from db.known_nodes import KnownNode, known
from db.models import Cordon, NodeState

log = logging.getLogger(__name__)

_PRIORITIES = tuple(Priority)
_ROWS_BETWEEN_CALLS = 20_000


class Memory:
    def __init__(
        self,
        weights: tuple[float, float, float, float],
        placement: PlacementPolicy = "balanced",
        half_life_seconds: float = HALF_LIFE_SECONDS,
        usual_limits: OwnerLimits | None = None,
        parked: Parked | None = None,
    ) -> None:
        self.cluster = Cluster(weights, placement)
        self.shares = FairShare(half_life_seconds, Limits(usual_limits))
        self.backlog = Backlog(self.shares)
        self.claims = Claims(self.cluster)
        self.placer = Placer(self.cluster, self.backlog, self.claims)
        #: attempts under way, by what holds their place: the job, and for other members of gangs see `holder`
        self.live: dict[str, Live] = {}
        #: jobs that wait for their `not_before`, or are parked
        self.delayed: dict[str, Waiting] = {}
        self._due: list[tuple[float, str]] = []
        self._due_of: dict[str, float] = {}
        self._expiries: list[float] = []
        #: by when (monotonic) jobs must have started that have not
        self.start_by: dict[str, float] = {}
        self.deadlines = Deadlines()
        self.dependencies = Dependencies()
        self.arrays = Arrays()
        self.parked = parked or Parked()
        #: what this scheduler cannot read of the record, and why: jobs, those of them that wait and are to be held, and
        #: nodes that are to be given up
        self.unreadable: dict[str, str] = {}
        self.to_hold: list[str] = []
        self.unreadable_nodes: dict[str, str] = {}
        #: when (monotonic) the next schedule is due
        self.next_firing = math.inf

    def load(self, tx: Connection, still_here: Callable[[], None] = lambda: None) -> None:
        """Read the record. Nodes are taken for late until their next beat is seen: nothing is placed blindly.

        `still_here` is called now and then: a million waiting jobs take longer than a leader may be silent.
        """
        self._load_nodes(tx)
        self._load_shares(tx)
        self._load_arrays(tx)
        members = gangs.live(tx)
        for attempt in attempts.live(tx):
            self._restore(attempt, members.get(attempt.job_id, ()))
        for job_id, on_id in dependencies.unmet(tx):
            self.dependencies.expect(job_id, on_id)
        self.expect_firing(schedules.next_in_seconds(tx))
        now = time.monotonic()
        for number, job in enumerate(waiting_jobs.waiting(tx)):
            if number % _ROWS_BETWEEN_CALLS == 0:
                still_here()
            self.deadlines.expect(job.id, job.deadline_in_seconds)
            if job.expires_in_seconds is not None:
                self._expire(job.id, now + job.expires_in_seconds)
            waiting = self.read(job)
            if waiting is not None:
                self.wait(waiting, now + job.starts_in_seconds if job.starts_in_seconds else None)
        for held in waiting_jobs.held(tx):
            self.deadlines.expect(held.id, held.deadline_in_seconds)

    def _load_nodes(self, tx: Connection) -> None:
        moment = Opening(time.time())
        for node in known(tx):
            try:
                self._restore_node(node, moment)
            except Exception as error:
                self.unreadable_nodes[node.id] = unreadable.why(error)
                log.error(line("node_unreadable", node=node.id, name=node.name, where=where(error)))

    def _restore_node(self, node: KnownNode, moment: Opening) -> None:
        """Raises whatever it is that makes a node's description unreadable, and knows nothing of the node then."""
        capability = Capability.model_validate(node.capability)
        restored = self.cluster.upsert_node(
            node.id,
            node.name,
            capability,
            node.incarnation,
            state=NodeState.SUSPECT,
            reputation=node.reputation,
            uptime=node.uptime,
            cordon=Cordon(node.cordon) if node.cordon else None,
            opens_at=moment.of(capability),
            tried=node.tried,
        )
        restored.faults, restored.quarantines = node.faults, node.quarantines

    def _load_shares(self, tx: Connection) -> None:
        for own in limits.of_owners(tx):
            self.shares.limits.set(own.owner, OwnerLimits(own.weight, own.running, own.waiting, own.per_minute))
        for project, quota in quotas.of_projects(tx).items():
            self.shares.set_quota(project, Quota(**quota))
        self.settle()
        self.shares.remember(usage.decayed(tx, self.shares.totals, self.shares.mean_life_seconds))

    def _load_arrays(self, tx: Connection) -> None:
        rules: dict[str, SuccessiveHalving | None] = {}
        for job_id, array_id, at_most, rule in arrays.members(tx):
            if array_id not in rules:
                rules[array_id] = _rule(array_id, rule)
            self.arrays.join(job_id, array_id, at_most, rules[array_id])

    def expect_firing(self, in_seconds: float | None) -> None:
        """The next schedule is due so long from now; None: there is none."""
        self.next_firing = time.monotonic() + in_seconds if in_seconds is not None else math.inf

    def _restore(self, attempt: attempts.Live, members: Sequence[gangs.Member]) -> None:
        resources = self._resources_of(attempt, members)
        waiting = Waiting(
            attempt.job_id,
            attempt.seq,
            resources,
            _PRIORITIES[attempt.priority],
            attempt.owner,
            attempt.project,
            coarse(attempt.time_limit_seconds),
        )
        assigned_at = time.monotonic() - attempt.age_seconds
        self.live[attempt.job_id] = Live(
            attempt.token,
            attempt.number,
            attempt.node_id,
            attempt.incarnation,
            attempt.gpus,
            waiting,
            attempt.state == AttemptState.RUNNING,
            assigned_at,
            publications=1,
            # What a leader before this one published may be lost: it is published again, once.
            published_at=-math.inf,
            cancel_asked=attempt.cancel_requested,
        )
        self.deadlines.expect(attempt.job_id, attempt.deadline_in_seconds)
        if attempt.expires_in_seconds is not None:
            # It may be lost before it has started.
            self._expire(attempt.job_id, time.monotonic() + attempt.expires_in_seconds)
        self.arrays.take_place(attempt.job_id)
        if members:
            self._restore_gang(self.live[attempt.job_id], members)
            return
        gpus = 0 if resources.shared else len(attempt.gpus)
        self.backlog.charge(waiting, (gpus, attempt.gpu_memory_bytes, attempt.cpus, attempt.ram_bytes))
        if attempt.node_id in self.cluster:
            self.cluster.take(attempt.node_id, attempt.job_id, demand_of(resources), attempt.gpus)

    def _resources_of(self, attempt: attempts.Live, members: Sequence[gangs.Member]) -> Resources:
        """What an attempt needs. One of a job that cannot be read goes on with what it holds, and is not placed
        again.
        """
        try:
            return tightened(Resources.parse(attempt.resources), attempt.learned)
        except Exception as error:
            self.cannot_be_read(attempt.job_id, error)
            return unreadable.stand_in(attempt, max(1, len(members)))

    def _restore_gang(self, lead: Live, members: Sequence[gangs.Member]) -> None:
        """`lead` is what the record says of the whole attempt."""
        demand, found = demand_of(lead.waiting.resources), []
        for member in members:
            live = replace(
                lead,
                token=member.token,
                node_id=member.node_id,
                incarnation=member.incarnation,
                gpus=member.gpus,
                running=member.started,
                rank=member.rank,
                ended=_end_of(member, lead) if member.report is not None else None,
            )
            found.append(live)
            self.live[live.holder] = live
            if live.node_id in self.cluster:
                self.cluster.take(live.node_id, live.holder, demand, live.gpus)
        for live in found:
            live.gang = tuple(found)
        self.backlog.charge(lead.waiting, taken_together(demand, [member.gpu_memory_bytes for member in members]))

    # What cannot be read --------------------------------------------------------------------------------------------

    @property
    def needs_a_turn(self) -> bool:
        """Whether something is still to be set aside in the record."""
        return bool(self.to_hold or self.unreadable_nodes)

    def read(self, job: waiting_jobs.Waiting) -> Waiting | None:
        """A pending job of the record. None: it cannot be read, and this turn, or the next one, holds it."""
        try:
            waiting = waiting_job(job)
        except Exception as error:
            self.cannot_be_read(job.id, error)
            self.to_hold.append(job.id)
            return None
        self.unreadable.pop(job.id, None)
        return waiting

    def cannot_be_read(self, job_id: str, error: Exception) -> None:
        """A job is not placed; it is held as soon as it would wait."""
        self.unreadable[job_id] = unreadable.story(error)
        log.error(line("job_unreadable", job=job_id, reason=unreadable.why(error), where=where(error)))

    # Waiting jobs ---------------------------------------------------------------------------------------------

    def wait(self, waiting: Waiting, due: float | None = None) -> None:
        """Let a job wait: for the jobs that it comes after; for its time, if `due` (monotonic) is still to come; until
        few enough of its array are at work; for a node.
        """
        if waiting.job_id in self.unreadable:
            self.to_hold.append(waiting.job_id)
            return
        if self.dependencies.hold(waiting, due):
            return
        if due is None or due <= time.monotonic():
            self._wait_for_a_node(waiting)
        else:
            self._delay(waiting, due)

    def _delay(self, waiting: Waiting, due: float) -> None:
        self.delayed[waiting.job_id] = waiting
        self._due_of[waiting.job_id] = due
        heappush(self._due, (due, waiting.job_id))

    def wait_until(self, waiting: Waiting, not_before: datetime | None) -> None:
        """Let a job wait for a node, or first for the time that its submitter gave."""
        left_seconds = not_before.timestamp() - time.time() if not_before is not None else 0.0
        self.wait(waiting, time.monotonic() + left_seconds)

    def expect_expiry(self, job_id: str, expires_at: datetime | None, start_by_seconds: float | None) -> bool:
        """Wake up when a job that was just accepted expires, if ever. Returns whether that is still to come."""
        left_seconds = start_by_seconds if start_by_seconds is not None else math.inf
        if expires_at is not None:
            left_seconds = min(left_seconds, expires_at.timestamp() - time.time())
        if left_seconds < math.inf:
            self._expire(job_id, time.monotonic() + left_seconds)
        return left_seconds > 0

    def _expire(self, job_id: str, moment: float) -> None:
        heappush(self._expiries, moment)
        self.start_by[job_id] = moment

    def admit_due(self) -> int:
        """Move jobs whose time has come to those that wait for a node; how many did."""
        admitted = 0
        while self._due and self._due[0][0] <= time.monotonic():
            due, job_id = heappop(self._due)
            # One that stopped waiting, and was delayed again until later, has a moment of its own.
            if self._due_of.get(job_id) == due:
                del self._due_of[job_id]
                waiting = self.delayed.pop(job_id, None)
                if waiting is not None:
                    self._wait_for_a_node(waiting)
                    admitted += 1
        return admitted

    def admit_members(self) -> None:
        """Let jobs of arrays wait for a node in the place of others of their array that are over."""
        for waiting in self.arrays.admit():
            self._add_unless_parked(waiting)

    def _wait_for_a_node(self, waiting: Waiting) -> None:
        if self.arrays.enter(waiting):
            self._add_unless_parked(waiting)

    def _add_unless_parked(self, waiting: Waiting) -> None:
        until = self.parked.until(waiting)
        if until is None:
            self.backlog.add(waiting)
        else:
            self._delay(waiting, until)

    def any_expired(self) -> bool:
        """Whether some job's `expires` has passed since this was asked last."""
        found = False
        while self._expiries and self._expiries[0] <= time.monotonic():
            heappop(self._expiries)
            found = True
        return found

    def next_moment(self) -> float | None:
        """When (monotonic) the next delayed job is due, or the next one expires or has its deadline."""
        moments = [*(moment for moment, _ in self._due[:1]), *self._expiries[:1], self.deadlines.next_moment]
        return min((moment for moment in moments if moment is not None), default=None)

    def too_many(self, owners: Sequence[str]) -> dict[int, LimitReached]:
        """Of new jobs of these owners, those that exceed a limit, by their place in the list, and why."""
        refusals: dict[int, LimitReached] = {}
        now, known = time.monotonic(), self.shares.limits
        held_back: Counter[str] | None = None
        for owner, count in Counter(owners).items():
            own = known.of(owner)
            if own.waiting is None and own.per_minute is None:
                continue
            mine = [at for at, other in enumerate(owners) if other == owner]
            if own.waiting is not None:
                if held_back is None:
                    # Once for all owners of a batch: there may be a million of them.
                    held = chain(self.delayed.values(), self.dependencies.held(), self.arrays.held())
                    held_back = Counter(job.owner for job in held)
                allowed = max(0, own.waiting - self.backlog.waiting_of(owner) - held_back[owner])
                refusals |= dict.fromkeys(mine[allowed:], too_many_waiting(owner, own.waiting))
            if own.per_minute is not None:
                allowed = int(max(0.0, known.submissions_left(owner, now)))
                known.count_submissions(owner, min(count, allowed), now)
                refusals |= dict.fromkeys(mine[allowed:], too_many_submissions(owner, own.per_minute))
        return refusals

    def stop_waiting(self, job_id: str) -> bool:
        """A job waits no longer. False: it did not."""
        self.arrays.leave_place(job_id)
        return (
            self.delayed.pop(job_id, None) is not None
            or self.dependencies.let_go(job_id)
            or self.arrays.let_go(job_id)
            or self.backlog.remove(job_id)
        )

    # Live attempts --------------------------------------------------------------------------------------------

    def assigned(self, placement: Placement, token: int, number: int) -> Live:
        """A placement was recorded; its place is booked in the cluster already."""
        now = time.monotonic()
        live = self.live[holder(placement.job_id, placement.rank)] = Live(
            token,
            number,
            placement.node_id,
            placement.incarnation,
            placement.gpu_indexes,
            placement.waiting,
            running=False,
            assigned_at=now,
            publications=1,
            published_at=now,
            rank=placement.rank,
        )
        return live

    def assigned_gang(self, placement: Placement, tokens: Sequence[int], number: int) -> Live:
        """The same for a gang, whose members have these tokens, by rank. Returns the one of rank 0."""
        members = [
            self.assigned(member, token, number) for member, token in zip(placement.members, tokens, strict=True)
        ]
        for live in members:
            live.gang = tuple(members)
        return members[0]

    def ended(self, job_id: str) -> Live | None:
        """An attempt is over, all members of a gang with it, and its place free; None if there was none."""
        live = self.live.pop(job_id, None)
        self.cluster.release(job_id)
        for member in live.gang[1:] if live is not None else ():
            self.cluster.release(member.holder)
            del self.live[member.holder]
        self.backlog.discharge(job_id)
        self.arrays.leave_place(job_id)
        return live

    def settle(self) -> None:
        """Let time pass for who has had how much of the cluster."""
        self.backlog.settle(time.monotonic(), self.cluster.totals)

    def of_token(self, job_id: str, token: int) -> Live | None:
        """The job's attempt if `token` is its current one, or that of a member of its gang."""
        live = self.live.get(job_id)
        if live is None or live.token == token:
            return live
        return next((member for member in live.gang if member.token == token), None)

    def end_of(self, holder: str) -> float | None:
        """When (monotonic) an attempt will have ended at the latest; None: nobody knows."""
        live = self.live.get(holder)
        if live is None:
            return None
        now = time.monotonic()
        moments = []
        if live.stop is not None:
            moments.append(live.stop_said_at + live.stop.grace_seconds)
        if live.waiting.time_limit_seconds is not None:
            moments.append(live.assigned_at + live.waiting.time_limit_seconds)
        if (left_seconds := self.deadlines.left_seconds(live.job_id)) is not None:
            moments.append(now + left_seconds)
        return max(now, min(moments) + ENDING_SECONDS) if moments else None

    def on_node(self, node_id: str) -> Iterator[tuple[str, Live]]:
        """Holder and attempt of everything that is placed on one node, and has not ended there."""
        return (
            (name, live) for name, live in list(self.live.items()) if live.node_id == node_id and live.ended is None
        )


def waiting_job(job: waiting_jobs.Waiting) -> Waiting:
    """A pending job of the record, for the backlog."""
    resources = tightened(Resources.of_shape(job.shape), job.learned)
    limit_seconds = coarse(job.time_limit_seconds)
    return Waiting(job.id, job.seq, resources, _PRIORITIES[job.priority], job.owner, job.project, limit_seconds)


def _rule(array_id: str, rule: Mapping[str, Any] | None) -> SuccessiveHalving | None:
    """Which jobs of an array end early; none do where nobody can read it."""
    try:
        return SuccessiveHalving(**rule) if rule else None
    except Exception as error:
        log.error(line("early_stopping_unreadable", array=array_id, reason=unreadable.why(error)))
        return None


def _end_of(member: gangs.Member, lead: Live) -> MemberEnd:
    """A member's last word. One that cannot be read is none: its work is lost, as with its node."""
    try:
        return MemberEnd.recorded(member.report or {})
    except Exception as error:
        why = unreadable.why(error)
        log.error(line("last_word_unreadable", job=lead.job_id, rank=member.rank, reason=why, where=where(error)))
        report = Ended(
            node=member.node_id,
            incarnation=member.incarnation,
            job=lead.job_id,
            attempt=lead.number,
            token=member.token,
            outcome="failed",
            cause=Cause.NODE_LOST,
            message=f"the scheduler cannot read its last word: {why}",
        )
        return MemberEnd(report, taken_back=True)


def waiting_arrival(arrival: Arrival, sequence: int) -> Waiting:
    """A job that has just come in, for the backlog."""
    header, limit_seconds = arrival.header, coarse(arrival.time_limit_seconds)
    return Waiting(arrival.id, sequence, header.resources, header.priority, header.owner, header.project, limit_seconds)


def tightened(resources: Resources, learned: dict[str, Any] | None) -> Resources:
    """A job's resources with what its attempts taught in the place of what it asked for."""
    return Resources.parse(resources.model_dump(exclude_defaults=True) | learned) if learned else resources
