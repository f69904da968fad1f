"""Random lives of jobs, attempts and nodes on the real record, step by step beside a model of it.

Each step is one transaction with one call of a function of `db`, as the scheduler makes it; the model, which is the
record in memory that simulations run on, says what it must answer. At the end of each life every row is compared, and
the rules of every record hold. Nothing here waits: a lease of -1 s is over at once.

    pytest tests/integration/test_record_machine.py --hypothesis-profile=long      # many more, never the same twice
"""

from __future__ import annotations

import itertools
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from sqlalchemy import Connection

from cyxwiz_tasks.errors import NotLeader
from cyxwiz_tasks.states import AttemptState, Cause, JobState
from db import (
    attempts,
    first_attempts,
    job_messages,
    jobs,
    known_nodes,
    metrics,
    new_jobs,
    nodes,
    outcomes,
    waiting_jobs,
)
from db.attempts import Assigned, Ending, NewAttempt, Start
from db.fenced import fenced, fenced_connection, fences_itself
from db.job_messages import StoredMessage
from db.metrics import NewMetric
from db.models import Cordon, NodeState
from db.new_jobs import NewJob
from db.nodes import Registration
from tests.integration import record
from tests.integration.record_rows import differences, empty, next_epoch, rows_of_model, rows_of_record
from tests.simulation.memory_db import attempts as model_attempts
from tests.simulation.memory_db import first_attempts as model_first_attempts
from tests.simulation.memory_db import job_messages as model_job_messages
from tests.simulation.memory_db import jobs as model_jobs
from tests.simulation.memory_db import known_nodes as model_known_nodes
from tests.simulation.memory_db import metrics as model_metrics
from tests.simulation.memory_db import new_jobs as model_new_jobs
from tests.simulation.memory_db import nodes as model_nodes
from tests.simulation.memory_db import outcomes as model_outcomes
from tests.simulation.memory_db import waiting_jobs as model_waiting_jobs
from tests.simulation.memory_db.tables import Tables
from tests.simulation.memory_db.tables import fenced as model_fenced

NODES = 3
PROFILE = settings()

pick = st.integers(0, 5)
picks = st.lists(pick, min_size=1, max_size=3)
leases = st.sampled_from([3600.0, -1.0])
#: how a report differs from what the attempt's node would say
lies = st.sampled_from(["", "", "", "", "wrong node", "wrong job", "unknown token"])
ENDS = [
    (AttemptState.COMPLETED, JobState.COMPLETED, None),
    (AttemptState.FAILED, JobState.FAILED, Cause.ERROR),
    (AttemptState.FAILED, JobState.PENDING, Cause.OUT_OF_MEMORY),
    (AttemptState.FAILED, JobState.HELD, Cause.CRASHED),
    (AttemptState.LOST, JobState.PENDING, Cause.NODE_LOST),
    (AttemptState.CANCELLED, JobState.CANCELLED, Cause.CANCELLED),
    (AttemptState.PREEMPTED, JobState.PENDING, Cause.PREEMPTED),
]
pauses = st.sampled_from([None, None, 0.0, 60.0])


class RecordMachine(RuleBasedStateMachine):
    """One life of a record, from empty tables on."""

    connection: Connection

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(0)
        self.epoch = empty(self.connection)
        self.tables = Tables(time.time, self.epoch)
        self.jobs: list[NewJob] = []
        #: every attempt that there ever was
        self.attempts: list[Assigned] = []
        self.nodes = [self._uuid() for _ in range(NODES)]
        for node_id in self.nodes[:-1]:
            self._register(node_id, "i1")
        self._accept([record.new_job(self._uuid()) for _ in range(2)])

    def teardown(self) -> None:
        with self.connection.begin():
            assert record.broken_rules(self.connection) == {}
        self._compare(rows_of_record(self.connection), rows_of_model(self.tables))

    # Hypothesis leaves random rules out of each life: what every life needs stands in several. ----------------------

    @rule(
        kind=st.sampled_from(["new", "new", "placed", "again", "other"]),
        which=picks,
        key=st.sampled_from([None, None, "a", "b"]),
        delay=st.sampled_from([None, 3600]),
        start_by=st.sampled_from([None, None, 3600.0, -1.0]),
    )
    def accept(self, kind: str, which: list[int], key: str | None, delay: int | None, start_by: float | None) -> None:
        """New jobs, messages that came before, and others that claim the ids of those."""
        if kind == "placed":
            self._accept_placed([record.new_job(self._uuid()) for _ in which], which)
            return
        if kind != "new" and self.jobs:
            known = [self._job(at) for at in which]
            other = {"digest": "00" * 32} if kind == "other" else {}
            self._accept([record.new_job(job.id, **{"digest": job.digest} | other) for job in known])
            return
        options = {"not_before": _in(delay), "start_by_seconds": start_by, "deadline_seconds": start_by}
        ids = [self._uuid() for _ in which]
        priorities = [at % 4 for at in which]
        pairs = zip(ids, priorities, strict=True)
        self._accept([record.new_job(id, idempotency_key=key, priority=rank, **options) for id, rank in pairs])

    @precondition(lambda self: self.jobs)
    @rule(which=picks, node=st.integers(0, NODES - 2), lease_seconds=leases)
    def assign(self, which: list[int], node: int, lease_seconds: float) -> None:
        """Jobs that wait, and one that may not."""
        ids = [*itertools.islice(self.tables.pending, which[0]), self._job(which[-1]).id]
        self._assign(list(dict.fromkeys(ids)), self.nodes[node], lease_seconds)

    @precondition(lambda self: self.tables.pending)
    @rule(count=st.integers(1, 3), node=st.integers(0, NODES - 2))
    def run(self, count: int, node: int) -> None:
        placed = self._assign(list(itertools.islice(self.tables.pending, count)), self.nodes[node], 3600.0)
        starts = [Start(given.job_id, given.token, given.node_id, 4711, "cpu") for given in placed]
        self._same(attempts.start, model_attempts.start, starts)

    @precondition(lambda self: self.tables.live)
    @rule(at=pick, how=st.sampled_from(ENDS), pause=pauses)
    def end(self, at: int, how: tuple[AttemptState, JobState, Cause | None], pause: float | None) -> None:
        self._same(attempts.end, model_attempts.end, [_ending(self._claim(2 * at, ""), how, pause)])

    @precondition(lambda self: self.attempts)
    @rule(
        what=st.sampled_from(["start", "start", "tell", "end", "end"]),
        which=picks,
        lie=lies,
        how=st.sampled_from(ENDS),
        pause=pauses,
    )
    def report(
        self,
        what: str,
        which: list[int],
        lie: str,
        how: tuple[AttemptState, JobState, Cause | None],
        pause: float | None,
    ) -> None:
        """What nodes say, of newest and of old attempts, some twice in one batch, some lies."""
        claims = [self._claim(at, lie) for at in which]
        if what == "start":
            starts = [Start(*claim, 4711, "cuda:0") for claim in dict.fromkeys(claims)]
            self._same(attempts.start, model_attempts.start, starts)
        elif what == "tell":
            rows = [NewMetric(*claim, float(at % 3), {"loss": 0.5}) for claim, at in zip(claims, which, strict=True)]
            self._same(metrics.append, model_metrics.append, rows, epoch=False)
        else:
            self._same(attempts.end, model_attempts.end, [_ending(claim, how, pause) for claim in claims])

    @precondition(lambda self: self.attempts)
    @rule(
        which=picks,
        cause=st.sampled_from([Cause.NODE_LOST, Cause.PREEMPTED, Cause.DEADLINE]),
        job_state=st.sampled_from([JobState.PENDING, JobState.PENDING, JobState.FAILED, JobState.HELD]),
        pause=pauses,
    )
    def unplace(self, which: list[int], cause: Cause, job_state: JobState, pause: float | None) -> None:
        tokens = [self._attempt(at).token for at in which]
        given = (tokens, cause, "its node is gone", job_state, pause)
        self._same(attempts.unplace, model_attempts.unplace, *given, key=lambda settled: settled.token)

    @precondition(lambda self: self.jobs)
    @rule(
        what=st.sampled_from(["hold", "release", "release", "cancel", "fail", "replace", "expire", "ask", "ask"]),
        which=picks,
        text=st.sampled_from(["", "broke three nodes"]),
        delay=st.sampled_from([None, 0, 3600]),
    )
    def handle_jobs(self, what: str, which: list[int], text: str, delay: int | None) -> None:
        """What people, clocks and retries do to jobs, waiting or not."""
        ids = list(dict.fromkeys(self._job(at).id for at in which))
        match what:
            case "hold":
                self._same(jobs.hold, model_jobs.hold, ids, Cause.CRASHED, text)
            case "release":
                self._same(jobs.release, model_jobs.release, ids)
            case "cancel":
                self._same(jobs.cancel_waiting, model_jobs.cancel_waiting, ids, message=text or None)
            case "fail":
                self._same(jobs.fail_waiting, model_jobs.fail_waiting, ids, Cause.DEADLINE, text)
            case "expire":
                self._same(jobs.expire, model_jobs.expire)
            case "ask":
                self._same(jobs.request_cancel, model_jobs.request_cancel, ids[0], text)
            case "replace":
                job = self._job(which[0])
                message = StoredMessage(job.headers | {"retries": 1}, "again", job.properties)
                given = (job.id, message, _in(delay), 3600.0 if text else None)
                self._same(job_messages.replace_message, model_job_messages.replace_message, *given, epoch=False)

    @rule(
        what=st.sampled_from(["register", "mark", "seen", "cordon", "uncordon", "faults", "renew", "lead", "read"]),
        which=picks,
        incarnation=st.sampled_from(["i1", "i2"]),
        state=st.sampled_from(list(NodeState)),
        lease_seconds=leases,
    )
    def handle_nodes(
        self, what: str, which: list[int], incarnation: str, state: NodeState, lease_seconds: float
    ) -> None:
        """What nodes do, and leaders."""
        ids = [self.nodes[at % NODES] for at in which]
        match what:
            case "register":
                self._register(ids[0], incarnation)
            case "mark":
                cause = Cause.NODE_LOST if len(ids) > 1 else None
                self._same(nodes.mark, model_nodes.mark, ids, state, cause)
            case "seen":
                readings = {id: {"cpu": 0.5} if len(ids) > 1 else None for id in ids}
                self._same(nodes.seen, model_nodes.seen, readings, epoch=False)
            case "cordon":
                kind = Cordon.DRAINING if incarnation == "i1" else Cordon.QUARANTINED
                reason = "three faults" if len(ids) > 1 else ""
                self._same(nodes.cordon, model_nodes.cordon, ids[0], kind, lease_seconds, reason)
            case "uncordon":
                self._same(nodes.uncordon, model_nodes.uncordon, ids[0], forgive=len(ids) > 1)
            case "faults":
                counts = {id: (len(ids), at) for at, id in enumerate(ids)}
                self._same(nodes.count_faults, model_nodes.count_faults, counts, epoch=False)
                self._same(nodes.note_tried, model_nodes.note_tried, ids[0], epoch=False)
            case "renew":
                self._same(attempts.renew, model_attempts.renew, ids, lease_seconds, epoch=False)
            case "lead":
                self._lead()
            case "read":
                self._read_all()

    # ----------------------------------------------------------------------------------------------------------------

    def _lead(self) -> None:
        """The next leader; of one whose epoch is not the newest nothing is accepted."""
        self.epoch = next_epoch(self.connection)
        self.tables.epoch += 1
        assert self.epoch == self.tables.epoch
        for other in (self.epoch - 1, self.epoch + 1):
            with pytest.raises(NotLeader), fences_itself(self.connection) as tx:
                first_attempts.accept_placed(tx, other, [], [], 3600.0)
            with pytest.raises(NotLeader), fenced(self.connection, other) as tx:
                jobs.hold(tx, other, [job.id for job in self.jobs], Cause.CRASHED, "")

    def _read_all(self) -> None:
        """What a leader reads when it begins."""
        with fenced(self.connection, self.epoch) as tx, model_fenced(self.tables, self.epoch) as model:
            self._compare(list(waiting_jobs.waiting(tx)), list(model_waiting_jobs.waiting(model)))
            self._compare(waiting_jobs.held(tx), model_waiting_jobs.held(model))
            self._compare(attempts.live(tx), model_attempts.live(model))
            self._compare(attempts.overdue(tx), model_attempts.overdue(model))
            by_id = {node.id: node for node in model_known_nodes.known(model)}
            self._compare({node.id: node for node in known_nodes.known(tx)}, by_id)
            some = list(by_id)[1:]
            self._compare(known_nodes.uptimes(tx, some), model_known_nodes.uptimes(model, some))
            ids = [job.id for job in self.jobs]
            self._compare(attempts.history(tx, ids), model_attempts.history(model, ids))
            tokens = [given.token for given in self.attempts]
            suspicious = [Cause.CRASHED, Cause.OUT_OF_MEMORY]
            blamed = model_attempts.blamed(model, tokens, suspicious)
            self._compare(attempts.blamed(tx, tokens, suspicious), blamed)
            self._compare(list(waiting_jobs.waiting(tx, ids[:2])), list(model_waiting_jobs.waiting(model, ids[:2])))
            self._compare(sorted(nodes.quarantines_over(tx)), sorted(model_nodes.quarantines_over(model)))
            told = {outcome.job_id: outcome for outcome in model_outcomes.outcomes(model, ids)}
            self._compare({outcome.job_id: outcome for outcome in outcomes.outcomes(tx, ids)}, told)
            ended = {end.job_id for end in model_outcomes.ends(model, None, 3600.0, -60.0)}
            assert {end.job_id for end in outcomes.ends(tx, None, 3600.0, -60.0)} == ended
            self._compare(job_messages.messages(tx, ids), model_job_messages.messages(model, ids))

    def _accept(self, new: list[NewJob]) -> None:
        with fenced(self.connection, self.epoch) as tx:
            real = new_jobs.accept(tx, self.epoch, new)
        seqs = {answer.id: answer.seq for answer in real if answer.created}
        self.tables.next_seq = seqs.__getitem__  # type: ignore[method-assign]
        with model_fenced(self.tables, self.epoch) as model:
            self._compare(real, model_new_jobs.accept(model, self.epoch, new))
        self.jobs += [job for job in new if job.id in seqs]

    def _accept_placed(self, new: list[NewJob], which: list[int]) -> None:
        """Jobs with their first attempts; none at all if one of them is known."""
        if self.jobs and which[0] == 0:
            new[-1] = self._job(which[-1])
        ids = [job.id for job in new]
        places = [
            NewAttempt(self.nodes[0], "i1", (0,), 1 << 30, 1, 1 << 30, job_id=id, scores={"fit": 1.0}) for id in ids
        ]
        with fences_itself(self.connection) as tx:
            real = first_attempts.accept_placed(tx, self.epoch, new, places, 3600.0)
        self.tables.next_token = lambda job_id: real[job_id].token  # type: ignore[method-assign]
        self.tables.next_seq = lambda job_id: real[job_id].seq  # type: ignore[method-assign]
        with model_fenced(self.tables, self.epoch) as model:
            self._compare(real, model_first_attempts.accept_placed(model, self.epoch, new, places, 3600.0))
        self.jobs += [job for job in new if job.id in real]
        self.attempts += [Assigned(id, real[id].token, 1, self.nodes[0]) for id in ids if id in real]

    def _assign(self, ids: list[str], node_id: str, lease_seconds: float) -> list[Assigned]:
        places = [NewAttempt(node_id, "i1", (0,), 1 << 30, 1, 1 << 30, job_id=id, scores={"fit": 1.0}) for id in ids]
        with fenced(self.connection, self.epoch) as tx:
            real = attempts.assign(tx, self.epoch, places, lease_seconds)
        highest = max((known.token for known in self.attempts), default=0)
        assert all(given.token > highest for given in real.values())
        self.tables.next_token = lambda job_id: real[job_id].token  # type: ignore[method-assign]
        with model_fenced(self.tables, self.epoch) as model:
            self._compare(real, model_attempts.assign(model, self.epoch, places, lease_seconds))
        # In the order in which they were asked for: that of their tokens is the planner's, and a life that is lived
        # again must be the same.
        placed = [real[id] for id in ids if id in real]
        self.attempts += placed
        return placed

    def _register(self, node_id: str, incarnation: str) -> None:
        registration = Registration(node_id, "one", "one@box", incarnation, record.capability())
        self._same(nodes.register, model_nodes.register, registration)

    def _same(
        self,
        real: Callable[..., Any],
        model: Callable[..., Any],
        *arguments: Any,
        epoch: bool = True,
        key: Callable[[Any], Any] | None = None,
        **keywords: Any,
    ) -> None:
        """Call both; those that write under an `epoch` are given it, `key` sorts answers that come in no order."""
        given = (self.epoch, *arguments) if epoch else arguments
        with fenced(self.connection, self.epoch) as tx:
            answer = real(tx, *given, **keywords)
        with model_fenced(self.tables, self.epoch) as twin:
            expected = model(twin, *given, **keywords)
        if isinstance(answer, list) and (key is not None or all(isinstance(one, str) for one in answer)):
            answer, expected = sorted(answer, key=key), sorted(expected, key=key)
        self._compare(answer, expected)

    @staticmethod
    def _compare(answer: Any, expected: Any) -> None:
        different = differences(answer, expected)
        assert different == [], "\n".join(different)

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def _job(self, at: int) -> NewJob:
        return self.jobs[-1 - at % len(self.jobs)]

    def _attempt(self, at: int) -> Assigned:
        """One that is under way, if there is one, for even numbers; else any."""
        live = [given for given in self.attempts if given.token in self.tables.live]
        found = live if live and at % 2 == 0 else self.attempts
        return found[-1 - at % len(found)]

    def _claim(self, at: int, lie: str) -> tuple[str, int, str]:
        """Job, token and node of a report."""
        given = self._attempt(at)
        job_id = self._job(at + 1).id if lie == "wrong job" else given.job_id
        node_id = self.nodes[-1] if lie == "wrong node" else given.node_id
        return job_id, given.token + (10**6 if lie == "unknown token" else 0), node_id


def _in(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)


def _ending(
    claim: tuple[str, int, str], how: tuple[AttemptState, JobState, Cause | None], pause: float | None
) -> Ending:
    state, job_state, cause = how
    word: dict[str, Any] = {"message": "it broke", "exit_code": 1} if cause is not None else {"result": {"loss": 0.5}}
    if job_state == JobState.PENDING and pause is not None:
        word |= {"learned": {"ram": "8GB.."}, "job_message": "it broke, tried twice"}
    return Ending(*claim, state, job_state, cause, retry_after_seconds=pause, **word)


@pytest.mark.timeout(600)
def test_random_lives_of_a_record(engine):
    chosen = settings(PROFILE, max_examples=5 * PROFILE.max_examples, stateful_step_count=50)
    with fenced_connection(engine) as connection:
        machine = type("Machine", (RecordMachine,), {"connection": connection})
        run_state_machine_as_test(machine, settings=chosen)
