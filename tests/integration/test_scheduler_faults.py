"""Crashes at the worst moments, servers that go away, and two schedulers."""

from __future__ import annotations

import hashlib
import json
import threading
import time

import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import text

from broker.scheduler import accepting, explain, leader, parking, placing, placing_at_once
from broker.scheduler.candidates import Candidates
from broker.scheduler.command import SILENCE_SECONDS
from broker.scheduler.duties.late_nodes import LateNodes
from broker.scheduler.duties.processing_lists import ProcessingLists
from broker.scheduler.leader import Leader
from broker.scheduler.outbox import EPOCH
from broker.scheduler.placement import Placer
from cyxwiz_tasks import failpoints
from cyxwiz_tasks.errors import ProtocolError
from cyxwiz_tasks.protocol.commands import SetLimits
from cyxwiz_tasks.protocol.names import COMMANDS, INBOX, REJECTED, REPORTS
from db import attempts
from tests.integration.control_plane import Scheduler
from tests.integration.record import end_session_of_leader
from tests.integration.waiting import until


class Crash(BaseException):
    """What no handler catches, like a SIGKILL."""


@pytest.fixture
def crash(monkeypatch):
    """`crash(owner, name)`: the next call of that function is the scheduler's last; it leaves everything as it is.

    With `given`, the next call with these arguments.
    """

    def arm(owner, name, *given):
        armed = threading.Event()
        armed.set()
        original, hand_over = getattr(owner, name), Leader._hand_over

        def die(*args, **kwargs):
            if armed.is_set() and args[: len(given)] == given:
                armed.clear()
                monkeypatch.setattr(Leader, "_hand_over", lambda self: self.inbox.stop())
                raise Crash
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, die)
        return lambda: monkeypatch.setattr(Leader, "_hand_over", hand_over)

    return arm


@pytest.mark.parametrize(
    "where",
    [
        (accepting, "_let_wait"),
        (placing, "place"),
        (failpoints, "hit", "scheduler.before_commit"),
        (placing_at_once, "accept_placed"),
        (placing_at_once, "publish"),
        (Leader, "publish"),
        (Leader, "_send"),
    ],
    ids=lambda where: f"{where[0].__name__.rpartition('.')[2]}-{where[-1]}",
)
def test_a_crash_anywhere_in_a_turn_loses_nothing_and_doubles_nothing(plane, crash, monkeypatch, where):
    # Jobs with a key take an ordinary turn, also where they could be placed at once.
    options = [{} if where[0] is placing_at_once else {"idempotency_key": f"key {number}"} for number in range(3)]
    jobs = [(plane.signature(number), options[number]) for number in range(3)]
    dying = Scheduler(plane.settings)
    # It is to die in the turn that takes the jobs, and other duties have turns of their own.
    with monkeypatch.context() as quiet:
        quiet.setattr(leader, "DUTIES", (ProcessingLists,))
        dying.start()
        try:
            node, heal = plane.node(), crash(*where)
            handles = plane.client.submit_many(jobs, wait=False)
            dying.wait()
        finally:
            dying.stop()
    assert isinstance(dying.error, Crash)
    heal()
    with plane.scheduler():
        done = {node.run().job for _ in handles}
        assert done == {handle.id for handle in handles}
        assert [plane.job(job_id)["attempts"] for job_id in done] == [1, 1, 1]
        assert plane.redis.llen(INBOX) == 0
        until(lambda: not [key for key in plane.redis.keys("cyxwiz.busy.*") if plane.redis.llen(key)])


def test_a_crash_after_the_commit_of_an_end_answers_it_by_the_next_leader(plane, crash):
    with plane.scheduler():
        node = plane.node()
        plane.submit()
        assignment, _ = node.take()
    heal = crash(Leader, "_send")
    dying = Scheduler(plane.settings)
    threading.Thread(target=lambda: (dying.start(), dying.wait(), heal(), survivor.start())).start()
    survivor = Scheduler(plane.settings)
    try:
        assert node.end(assignment, result=5).committed
        assert plane.job(assignment.job)["result"] == 5
    finally:
        survivor.stop()


def test_a_standby_answers_queries_and_leads_as_soon_as_the_leader_goes(plane):
    with plane.scheduler() as first:
        job_id = plane.submit()
        with plane.scheduler():
            node = plane.node()
            assert node.take()[0].job == job_id
            first.stop()
            began = time.monotonic()
            plane.submit()
            assert node.take()[0].epoch == 2
            assert time.monotonic() - began < SILENCE_SECONDS, "it was told, and need not find out"
            assert plane.client.status()["leader"]["epoch"] == 2


def test_a_standby_answers_queries_while_nobody_leads(plane):
    from db.leadership import try_lead

    leadership = try_lead(plane.engine, "somebody who does nothing", silence_seconds=60)
    with plane.scheduler():
        assert plane.client.status()["leader"]["holder"] == "somebody who does nothing"
        leadership.release()
        plane.submit()


def test_an_answer_that_cannot_be_written_does_not_end_all_answers(plane):
    deep: list = []
    for _ in range(253):
        deep = [deep]
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assert node.run(result=deep).job == job_id
        with pytest.raises(ProtocolError, match="query 'job'"):
            plane.client.requests.query("job", id=job_id)
        assert [job["id"] for job in plane.client.requests.query("jobs")] == [job_id]


def test_a_name_that_no_index_can_hold_ends_no_scheduler(plane):
    owner = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(200))
    with plane.scheduler():
        plane.redis.lpush(COMMANDS, SetLimits(owner=owner, changes={"weight": 2.0}).model_dump_json())
        until(lambda: plane.redis.llen(REJECTED) == 1)
        plane.submit()


def test_a_leader_that_was_replaced_writes_nothing_more_and_stands_by(plane):
    with plane.scheduler():
        node = plane.node()
        with plane.engine.begin() as tx:
            tx.execute(text("UPDATE leadership SET epoch = epoch + 1"))
        handle = plane.client.submit_many([plane.signature(1)], wait=False)[0]
        assignment = node.run()
        assert (assignment.job, assignment.epoch) == (handle.id, 3)
        with plane.engine.connect() as tx:
            assert tx.scalar(text("SELECT min(epoch) FROM events WHERE job_id IS NOT NULL")) == 3


def test_a_frozen_leader_that_thaws_puts_no_old_state_over_a_new_one(plane, monkeypatch):
    stopped, thawed = threading.Event(), threading.Event()
    original = Leader.publish

    def freeze(self, outbox, batches=()):
        if self.epoch == 1 and not stopped.is_set():
            stopped.set()
            assert thawed.wait(30)
        original(self, outbox, batches)

    with plane.scheduler():
        node = plane.node()
        monkeypatch.setattr(Leader, "publish", freeze)
        handle = plane.client.submit_many([plane.signature(1)], wait=False)[0]
        assert stopped.wait(10), "it has committed the placement, and says nothing of it"
        end_session_of_leader(plane.engine)
        with plane.scheduler():
            assignment = node.run()
            assert (assignment.job, assignment.attempt) == (handle.id, 1), "its successor publishes it"
            plane.app.backend.store_result(handle.id, 5, "SUCCESS")
            thawed.set()
            other = plane.submit(2)
            assert node.take()[0].job == other
            assert plane.celery_state(handle.id) == "SUCCESS"
    assert plane.celery_state(handle.id) == "SUCCESS"


def test_a_record_that_lost_its_tail_gives_out_no_epoch_and_no_token_twice(plane):
    plane.redis.set(EPOCH, 1000)
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment = node.run()
        assert assignment.job == job_id
        assert (assignment.epoch, assignment.token > 1_000_000) == (1001, True)


def test_messages_that_a_frozen_leader_took_are_given_back(plane):
    with plane.scheduler():
        plane.submit()
        late = plane.redis_message(plane.signature(2))
        plane.redis.lpush("cyxwiz.busy.0.0", json.dumps(late))
        until(lambda: len(plane.client.jobs()) == 2)


def test_a_lost_connection_to_redis_costs_a_moment(plane):
    with plane.scheduler():
        node = plane.node()
        for _ in range(3):
            plane.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            job_id = plane.submit()
            assert node.run().job == job_id
        assert plane.job(job_id)["attempts"] == 1


def test_a_redis_that_forgets_everything_costs_no_job(plane, monkeypatch):
    monkeypatch.setattr("broker.scheduler.duties.unstarted._PATIENCE_SECONDS", 0.5)
    with plane.scheduler():
        waiting = plane.submit(resources={"gpus": 1})
        node = plane.node(slots=4)
        running, assigned = plane.submit(), plane.submit()
        first, _ = node.take()
        node.start(first)
        plane.wait_for(running, "running")
        plane.redis.flushdb()
        again, _ = node.take()
        assert again.job == assigned
        for assignment in (first, again):
            assert node.end(assignment).committed
        assert plane.job(waiting)["state"] == "pending"
        assert plane.node("big", gpus=1).run().job == waiting


def test_nobody_is_late_for_a_time_in_which_redis_was_away(plane):
    with plane.scheduler():
        node = plane.node()
        plane.submit()
        assignment, _ = node.take()
        node.start(assignment)
        # Longer than a lease; nothing gets through, for nobody.
        plane.redis.execute_command("CLIENT", "PAUSE", int(1000 * (plane.settings.lease_seconds + 1.0)))
        assert node.end(assignment).committed
        assert plane.job(assignment.job)["attempts"] == 1


def test_postgres_ends_every_connection_and_the_next_term_goes_on(plane):
    with plane.scheduler():
        node = plane.node()
        waiting = plane.submit(resources={"gpus": 1})
        for epoch in (2, 3):
            with plane.engine.begin() as tx:
                tx.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name "
                        "AND datname = current_database()"
                    ),
                    {"name": "cyxwiz-scheduler"},
                )
            job_id = plane.submit()
            assignment = node.run()
            assert (assignment.job, assignment.epoch) == (job_id, epoch)
        assert plane.job(waiting)["state"] == "pending"


def test_a_message_that_no_turn_can_swallow_is_set_aside_alone(plane, monkeypatch):
    original = accepting._let_wait
    poison: list[str] = []

    def swallow(turn, submission):
        if submission.arrival.id in poison:
            raise ZeroDivisionError
        original(turn, submission)

    monkeypatch.setattr(accepting, "_let_wait", swallow)
    messages = [plane.redis_message(plane.signature(number)) for number in range(5)]
    poison.append(messages[2]["headers"]["id"])
    plane.redis.lpush(INBOX, *(json.dumps(message) for message in messages))
    with plane.scheduler():
        until(lambda: len(plane.client.jobs()) == 4)
        assert json.loads(plane.redis.lindex(REJECTED, 0))["reason"].startswith("it failed its turn")
        node = plane.node()
        assert len({node.run().job for _ in range(4)}) == 4


def test_a_placement_that_fails_costs_no_message_and_goes_on_once_it_works(plane, monkeypatch, caplog):
    original, broken = Placer.place, threading.Event()

    def place(self, *args):
        if broken.is_set():
            raise ZeroDivisionError
        return original(self, *args)

    monkeypatch.setattr(Placer, "place", place)
    monkeypatch.setattr(leader, "_PLACING_PAUSE_SECONDS", 0.5, raising=False)
    with plane.scheduler():
        node = plane.node()
        running = plane.submit(0)
        assignment = node.take()[0]
        node.start(assignment)
        plane.wait_for(running, "running")
        broken.set()
        ids = [plane.submit(number) for number in range(1, 4)]
        until(lambda: len(plane.client.jobs()) == 4)
        assert node.end(assignment).committed
        assert plane.redis.llen(REJECTED) == 0
        assert "nothing_can_be_placed" in caplog.text
        broken.clear()
        assert {node.run().job for _ in ids} == set(ids)


def test_a_report_that_makes_room_for_a_job_that_cannot_be_placed_is_not_rejected(plane, monkeypatch):
    original, broken = placing.place, threading.Event()

    def place(turn, limit):
        if broken.is_set() and turn.counts["ended"] + turn.counts["completed"] + len(turn.over):
            raise ZeroDivisionError
        return original(turn, limit)

    monkeypatch.setattr(placing, "place", place)
    monkeypatch.setattr(leader, "_PLACING_PAUSE_SECONDS", 0.5, raising=False)
    with plane.scheduler():
        node = plane.node()
        plane.submit(0)
        assignment = node.take()[0]
        node.start(assignment)
        broken.set()
        assert node.end(assignment).committed
        assert plane.redis.llen(REJECTED) == 0


def test_a_kind_of_jobs_whose_placement_fails_is_parked_and_all_others_are_placed(plane, monkeypatch):
    original, broken = Candidates.best, threading.Event()

    def best(self, count):
        if broken.is_set() and self.demand.cpus == 3:
            raise ZeroDivisionError
        return original(self, count)

    monkeypatch.setattr(Candidates, "best", best)
    monkeypatch.setattr(parking, "_FIRST_SECONDS", 1.0)
    broken.set()
    with plane.scheduler():
        node = plane.node(slots=1)
        bad = [plane.submit(number, resources={"cpus": 3}, priority="high") for number in range(2)]
        for number in range(3):
            good = plane.submit(number)
            assert node.run().job == good
        assert "failed when it was to place this job (ZeroDivisionError)" in str(plane.client.why(bad[0]))
        assert plane.redis.llen(REJECTED) == 0
        broken.clear()
        assert {node.run().job for _ in bad} == set(bad)


@pytest.mark.parametrize("where", [(placing, "publish"), (attempts, "assign")], ids=["publish", "assign"])
def test_a_job_that_cannot_be_recorded_as_placed_is_parked_alone(plane, monkeypatch, where):
    owner, name = where
    original, broken, bad = getattr(owner, name), threading.Event(), list[str]()

    def fail_for_one(*args):
        ids = [args[1].job_id] if name == "publish" else [row.job_id for row in args[2]]
        if broken.is_set() and set(bad) & set(ids):
            raise ZeroDivisionError
        return original(*args)

    monkeypatch.setattr(owner, name, fail_for_one)
    monkeypatch.setattr(parking, "_FIRST_SECONDS", 1.0)
    broken.set()
    with plane.scheduler():
        ids = [plane.submit(number) for number in range(4)]
        bad.append(ids[1])
        node = plane.node(slots=4)
        assert {node.run().job for _ in range(3)} == {ids[0], *ids[2:]}
        assert plane.job(bad[0])["attempts"] == 0
        broken.clear()
        assert node.run().job == bad[0]
    assert plane.broken_rules() == {}


def test_one_of_several_jobs_that_cannot_be_recorded_is_found_where_nodes_were_there_before(plane, monkeypatch):
    original, bad = attempts.assign, list[str]()

    def fail_for_one(*args):
        if set(bad) & {row.job_id for row in args[2]}:
            raise ZeroDivisionError
        return original(*args)

    monkeypatch.setattr(attempts, "assign", fail_for_one)
    with plane.scheduler():
        node = plane.node(slots=4)
        big = plane.submit(resources={"cpus": node.capability.cpu_cores})
        first, _ = node.take()
        node.start(first)
        ids = [plane.submit(number, resources={"cpus": 1}) for number in range(4)]
        bad.append(ids[1])
        assert first.job == big
        assert node.end(first).committed
        assert {node.run().job for _ in range(3)} == {ids[0], *ids[2:]}


def test_a_question_that_fails_is_answered_and_costs_no_second_turn(plane, monkeypatch, caplog):
    def fail(*args, **keywords):
        raise ZeroDivisionError

    monkeypatch.setattr(explain, "why", fail)
    with plane.scheduler():
        job_id = plane.submit()
        with pytest.raises(ProtocolError, match="ZeroDivisionError"):
            plane.client.why(job_id)
        assert plane.redis.llen(REJECTED) == 0
        assert "turn_failed" not in caplog.text


def test_a_new_leader_finds_places_taken_and_jobs_where_they_were(plane):
    with plane.scheduler():
        node = plane.node(slots=2)
        ids = [plane.submit(number) for number in range(3)]
        delayed = plane.signature(9).apply_async(countdown=1.5).id
        places = {assignment.job: assignment for assignment, _ in (node.take(), node.take())}
        node.start(places[ids[0]])
        plane.wait_for(ids[0], "running")
        until(lambda: len(plane.client.jobs()) == 4)
    with plane.scheduler():
        again, _ = node.take()
        assert again.token == places[ids[1]].token, "published again, for it may have been lost; a started one is not"
        assert node.end(places[ids[0]]).committed
        assert node.take()[0].job == ids[2]
        assert node.end(places[ids[1]]).committed
        assert node.take()[0].job == delayed


def test_a_new_leader_places_nothing_on_a_node_that_it_has_not_heard(plane):
    with plane.scheduler():
        node = plane.node("gone meanwhile")
        node.silence()
    plane.redis.delete("cyxwiz.beats")
    with plane.scheduler():
        waiting = plane.submit()
        until(lambda: plane.client.nodes()[0]["state"] == "lost")
        assert plane.job(waiting)["attempts"] == 0


def test_a_job_that_was_lost_after_a_change_of_leaders_waits_where_it_waited(plane):
    with plane.scheduler():
        older = plane.submit(resources={"gpus": 1})
        node = plane.node()
        lost = plane.submit()
        assert node.take()[0].job == lost
    with plane.scheduler():
        node.leave()
        plane.wait_for(lost, "pending")
        other = plane.node("other", slots=1, gpus=1)
        assert [other.run().job, other.run().job] == [older, lost]


def test_a_report_of_endless_depth_is_rejected_without_a_word_on_the_others(plane, caplog):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        attempt, _ = node.take()
        plane.redis.lpush(REPORTS, "[" * 100_000)
        assert node.end(attempt).committed
        assert plane.job(job_id)["state"] == "completed"
        until(lambda: plane.redis.llen(REJECTED) == 1)
        assert "turn_failed" not in caplog.text


def test_a_redis_that_is_not_where_it_is_said_to_be_is_said_so(plane, caplog):
    caplog.set_level("WARNING")
    nobody = plane.settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})
    scheduler = Scheduler(nobody)
    scheduler.start()
    until(lambda: 'event=redis_away reason="Error 111 connecting to 127.0.0.1:1.' in caplog.text)
    scheduler.stop()
    assert scheduler.error is None


def test_a_redis_that_goes_away_as_a_term_begins_is_waited_for(plane, monkeypatch):
    original, calls = LateNodes.run_once, []

    def fail_first(self):
        calls.append(1)
        if len(calls) == 1:
            raise redis.ConnectionError
        return original(self)

    monkeypatch.setattr(LateNodes, "run_once", fail_first)
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit()
        assignment = node.run()
        assert (assignment.job, assignment.epoch) == (job_id, 1)
