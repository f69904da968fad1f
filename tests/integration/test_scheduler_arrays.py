"""Arrays over a real record: recorded as one, at most so many at work, listed, waited for and cancelled together."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from broker.scheduler.duties import early_stopping
from cyxwiz_tasks import SuccessiveHalving
from cyxwiz_tasks.array_parameters import array_of
from cyxwiz_tasks.cli.main import main
from cyxwiz_tasks.errors import InvalidJob, JobCancelled, NotFound
from cyxwiz_tasks.ids import member_id, new_id
from cyxwiz_tasks.protocol.names import INBOX
from cyxwiz_tasks.settings import settings
from cyxwiz_tasks.submission import Member, Preparation
from tests.integration.waiting import until


def at_work(array):
    return array.counts()["assigned"] + array.counts()["running"]


def test_at_most_so_many_of_an_array_are_at_work_whoever_leads(plane):
    with plane.scheduler():
        node = plane.node(slots=8)
        array = plane.client.map(plane.signature(), [{"seed": n} for n in range(5)], at_most=2, name="seeds")
        assert [handle.id for handle in plane.client.array(array.id)] == [handle.id for handle in array]
        taken = [node.take()[0] for _ in range(2)]
        assert [one.job for one in taken] == [array[0].id, array[1].id]
        until(lambda: "another job of its array to end: 2 of them are at work" in str(array[2].why()))
        other = plane.submit()
        assert node.take()[0].job == other
        assert node.end(taken[0]).committed
        assert node.take()[0].job == array[2].id
        assert at_work(array) == 2
        # One that is lost or tried again has its place back.
        assert node.end(taken[1], "preempted", cause="preempted", message="no").committed
        again = node.take()[0]
        assert (again.job, again.attempt) == (array[1].id, 2)
    with plane.scheduler():
        until(lambda: "2 of them are at work" in str(array[3].why()))
        assert at_work(array) == 2
        assert node.end(again).committed
        until(lambda: node.take()[0].job == array[3].id)  # a new leader publishes again what has not started
        assert [row["array_index"] for row in array.jobs()] == list(range(5))
        assert array.record()["at_most"] == 2
        assert array.cancel("enough") == 3
        with pytest.raises(JobCancelled, match="enough"):
            array[4].result(timeout=5)
        assert at_work(array) == 2  # until their node says so
        assert array.counts()["completed"] == 2


def test_after_an_array_and_from_one_to_the_next_by_index(plane):
    with plane.scheduler():
        node = plane.node(slots=8)
        first = plane.client.map(plane.signature(), {"seed": [0, 1]})
        second = plane.client.map(plane.signature(), {"seed": [0, 1]}, after=(first, "match"))
        last = plane.client.submit(plane.signature(), after=first)
        whatever = plane.client.submit(plane.signature(), after=(first, "any"))
        assert str(last.why()) == f"The job waits for array {first.id} to complete."
        taken = {one.job: one for one in (node.take()[0], node.take()[0])}
        assert node.end(taken[first[1].id]).committed
        assert node.take()[0].job == second[1].id
        assert node.end(taken[first[0].id], "failed", cause="error", message="no").committed
        assert node.take()[0].job == whatever.id
        with pytest.raises(JobCancelled, match=f"only if {first.id} completes, which is failed"):
            last.result(timeout=5)
        with pytest.raises(JobCancelled, match=first[0].id):
            second[0].result(timeout=5)
        with pytest.raises(InvalidJob, match="after: there is no job or array"):
            plane.client.submit(plane.signature(), after=(new_id(), "any"))
        with pytest.raises(NotFound, match="there is no array"):
            plane.client.array(last.id)


def test_an_array_whose_jobs_come_in_parts_is_waited_for_as_a_whole(plane):
    array, jobs = array_of(plane.signature(), [{"seed": 0}, {"seed": 1}], None, None, new_id(), None, {})
    prepare = Preparation(plane.app, None).prepare
    parts = [prepare(one, chosen, Member(array, index)).message for index, (one, chosen) in enumerate(jobs)]
    with plane.scheduler():
        node = plane.node(slots=8)
        plane.redis.lpush(INBOX, parts[0])
        first = node.run()
        last = plane.client.submit(plane.signature(3), after=array.id)
        broken = plane.client.submit(plane.signature(4), after=(array.id, "fail"))
        assert f"array {array.id} (which lacks 1 of its jobs: not sent yet, or refused) to complete" in str(last.why())
        plane.redis.lpush(INBOX, parts[1])
        second = node.run()
        assert (first.job, second.job) == (member_id(array.id, 0), member_id(array.id, 1))
        assert node.take()[0].job == last.id
        with pytest.raises(JobCancelled, match="fails, which is completed"):
            broken.result(timeout=5)


def test_an_array_that_lacks_jobs_after_a_day_is_waited_for_as_it_is(plane):
    array, [(one, chosen), _] = array_of(plane.signature(), [{"seed": 0}, {"seed": 1}], None, None, new_id(), None, {})
    with plane.scheduler():
        node = plane.node(slots=8)
        plane.redis.lpush(INBOX, Preparation(plane.app, None).prepare(one, chosen, Member(array, 0)).message)
        node.run()
        last = plane.client.submit(plane.signature(3), after=array.id)
        assert "lacks 1 of its jobs" in str(last.why())
    with plane.engine.begin() as tx:
        tx.execute(text("UPDATE arrays SET accepted_at = accepted_at - interval '25 hours'"))
    with plane.scheduler():
        assert node.take()[0].job == last.id


def test_the_worst_of_an_array_end_early_whoever_leads(plane):
    rule = SuccessiveHalving("accuracy", rung_epochs=(1, 2), keep=1 / 2)
    with plane.scheduler():
        node = plane.node(slots=8)
        array = plane.client.map(plane.signature(), {"seed": [0, 1, 2]}, early_stopping=rule)
        taken = [node.take()[0] for _ in range(3)]
        for assignment, accuracy in zip(taken, (0.7, 0.5, 0.9), strict=True):
            node.start(assignment)
            node.tell(assignment, {"epoch": 1, "accuracy": 0.99}, {"epoch": 1, "accuracy": accuracy})
        node.tell(taken[0], {"epoch": 2, "accuracy": 0.1})
        until(lambda: len(plane.client.metrics(array[0].id)) == 3)
    with plane.scheduler():
        node.tell(taken[1], {"epoch": 2, "accuracy": 0.1})
        assert node.told().job == array[1].id
        assert node.end(taken[1], "cancelled").committed
        told = "stopped early: rank 2 of 2 by accuracy (0.5) after epoch 1, of which the best 1 go on"
        with pytest.raises(JobCancelled) as raised:
            array[1].result(timeout=5)
        assert told in str(raised.value)
        # Now it is two thirds that are not kept.
        node.tell(taken[2], {"epoch": 2, "accuracy": "NaN"})
        assert node.told().job == array[0].id
        assert plane.job(array[0].id)["cancel_reason"].startswith("stopped early: rank 2 of 3 by accuracy (0.7)")
        assert plane.job(array[2].id)["cancel_reason"] is None


def test_who_reports_a_metric_once_an_epoch_is_judged_when_the_next_epoch_begins(plane):
    rule = SuccessiveHalving("val_accuracy", rung_epochs=(1,), keep=1 / 2)
    with plane.scheduler():
        node = plane.node(slots=8)
        array = plane.client.map(plane.signature(), {"seed": [0, 1]}, early_stopping=rule)
        taken = [node.take()[0] for _ in range(2)]
        for assignment, accuracy in zip(taken, (0.5, 0.9), strict=True):
            node.start(assignment)
            # As the built-in training does: steps say no val_accuracy.
            node.tell(assignment, {"epoch": 1, "val_accuracy": accuracy}, {"epoch": 2, "step": 21, "accuracy": 0.1})
        assert node.told().job == array[0].id
        until(lambda: plane.job(array[0].id)["cancel_reason"])
        told = "stopped early: rank 2 of 2 by val_accuracy (0.5) after epoch 1"
        assert plane.job(array[0].id)["cancel_reason"].startswith(told)


def test_a_leader_that_has_read_a_part_of_what_was_reported_ends_nobody(plane, monkeypatch):
    rule = SuccessiveHalving("accuracy", rung_epochs=(1, 2), keep=1 / 2)
    with plane.scheduler():
        node = plane.node(slots=8)
        array = plane.client.map(plane.signature(), {"seed": [0, 1, 2]}, early_stopping=rule)
        for _ in range(3):
            node.start(node.take()[0])
    # Job 0 is the worse of two after epoch 1, and comes to the next rung with a later row; job 2 is the worst of three.
    rows = [(0, 1, 0.2), (1, 1, 0.9), (2, 1, 0.1), (0, 2, 0.2), (1, 2, 0.9), (0, 3, 0.3), (2, 2, 0.1)]
    with plane.engine.begin() as tx:
        for index, epoch, accuracy in rows:
            values = json.dumps({"epoch": epoch, "accuracy": accuracy})
            insert = "INSERT INTO metrics (job_id, attempt, at, values) VALUES (:id, 1, now(), CAST(:values AS jsonb))"
            tx.execute(text(insert), {"id": array[index].id, "values": values})
    monkeypatch.setattr(early_stopping, "_BATCH", 1)
    monkeypatch.setattr(early_stopping, "_BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(early_stopping.EarlyStopping, "every_seconds", 0.05)
    with plane.scheduler():
        assert node.told().job == array[2].id
        assert [plane.job(job.id)["cancel_reason"] is None for job in array] == [True, True, False]


def test_the_same_array_again_changes_nothing(plane):
    with plane.scheduler():
        sent = [plane.client.map(plane.signature(), {"seed": [0, 1]}, id=id) for id in [new_id()] * 2]
        assert sent[0].id == sent[1].id
        assert sent[0].counts()["pending"] == 2
        assert len(plane.client.jobs()) == 2


def test_an_array_on_the_command_line(plane, monkeypatch):
    monkeypatch.setenv("CYXWIZ_BROKER_URL", plane.broker_url)
    settings.cache_clear()

    def cyxwiz(*words):
        return CliRunner().invoke(main, list(words))

    with plane.scheduler():
        given = (
            "submit",
            "--model",
            "cnn",
            "--dataset",
            "digits",
            "--grid",
            "learning-rate=0.1,0.01",
            "--at-most",
            "1",
        )
        sent = cyxwiz(*given)
        assert sent.exit_code == 0, sent.output
        array_id = sent.output.partition(":")[0]
        listed = cyxwiz("jobs", "--array", array_id[-8:], "--json")
        assert [row["name"] for row in json.loads(listed.output)] == ["cnn learning_rate=0.1", "cnn learning_rate=0.01"]
        cancelled = cyxwiz("cancel", "--array", array_id, "--reason", "wrong grid")
        assert cancelled.output == f"{array_id}: 2 jobs cancelled\n"
        assert cyxwiz("cancel").exit_code == 2
        wrong = cyxwiz(*given[:5], "--grid", "learning_rate=fast")
        assert (wrong.exit_code, wrong.stderr) == (
            2,
            "error: learning_rate: must be a number, not 'fast'. Write for example learning_rate=0.001\n",
        )
        assert "at_most: is for an array" in cyxwiz(*given[:5], "--at-most", "1").stderr
    settings.cache_clear()
