"""Jobs that come after others."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from cyxwiz_tasks.errors import InvalidJob, JobCancelled
from cyxwiz_tasks.ids import new_id
from tests.integration.waiting import until


def test_a_job_is_placed_once_those_that_it_comes_after_have_ended_as_it_asked(plane):
    with plane.scheduler():
        first, second = plane.submit(), plane.submit(2)
        last = plane.client.submit(plane.signature(3), after=[first, (second, "fail")])
        assert str(last.why()) == (
            f"The job waits for job {first} (pending) to complete, job {second} (pending) to fail or be cancelled. "
            f"`cyxwiz why {first}` says where that one is."
        )
        node = plane.node(slots=2)
        taken = {assignment.job: assignment for assignment in (node.take()[0], node.take()[0])}
        assert set(taken) == {first, second}
        assert node.end(taken[first]).committed
        assert f"waits for job {second}" in str(last.why())
        assert node.end(taken[second], "failed", cause="error", message="no").committed
        assert node.take()[0].job == last.id
        assert [(row["id"], row["kind"]) for row in last.record()["after"] if row["met_at"]] == [
            (first, "ok"),
            (second, "fail"),
        ]


def test_what_can_never_run_ends_with_all_that_comes_after_it(plane):
    with plane.scheduler():
        first = plane.submit()
        second = plane.client.submit(plane.signature(2), after=first)
        third = plane.client.submit(plane.signature(3), after=second)
        clean_up = plane.submit(4, after=f"{third.id}:any")
        plane.client.cancel(first)
        with pytest.raises(JobCancelled, match=f"only if {first} completes, which is cancelled"):
            second.result(timeout=5)
        with pytest.raises(JobCancelled, match=second.id):
            third.result(timeout=5)
        assert plane.causes(third.id) == [("pending", None), ("cancelled", "dependency")]
        assert plane.node().take()[0].job == clean_up
        late = plane.client.submit(plane.signature(5), after=first)
        with pytest.raises(JobCancelled, match=f"{first} completes"):
            late.result(timeout=5)
        with pytest.raises(InvalidJob, match=f"after: there is no job or array {(unknown := new_id())}"):
            plane.submit(6, after=unknown)


def test_a_new_leader_knows_who_waits_for_whom(plane):
    with plane.scheduler():
        node = plane.node()
        first = plane.submit()
        assignment, _ = node.take()
        jobs = [(plane.signature(n), {"id": new_id()}) for n in (1, 2)]
        jobs[1][1]["after"] = [first, jobs[0][1]["id"]]
        between, last = (handle.id for handle in plane.client.submit_many(jobs))
        assert node.take()[0].job == between
    with plane.scheduler():
        until(lambda: "waits for job" in str(plane.client.why(last)))
        assert node.end(assignment).committed
        message = str(plane.client.why(last))
        assert between in message
        assert first not in message
        plane.client.cancel(between)
        assert node.told().job == between
        attempt = plane.job(between)["attempt_list"][0]
        assignment = assignment.model_copy(update={"job": between, "token": attempt["token"]})
        assert node.end(assignment, "cancelled").committed
        assert plane.wait_for(last, "cancelled")["cause"] == "dependency"


def test_after_its_dependencies_a_job_still_waits_for_its_time(plane):
    with plane.scheduler():
        node = plane.node()
        first = plane.submit()
        last = plane.client.submit(plane.signature(2, countdown=3600), after=first)
        node.run()
        until(lambda: "for its time" in str(last.why()))
        with plane.engine.begin() as tx:
            assert tx.execute(text("SELECT count(*) FROM dependencies WHERE met_at IS NULL")).scalar() == 0
        last.cancel()
        assert plane.wait_for(last.id, "cancelled")["cause"] == "cancelled"
