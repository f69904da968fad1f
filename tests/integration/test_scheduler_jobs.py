"""A job's way through a real scheduler, Redis and Postgres, with nodes that the test plays."""

from __future__ import annotations

import pytest

from tests.integration.control_plane import ControlPlane


@pytest.fixture
def plane(broker_url, database_url, engine):
    plane = ControlPlane(broker_url, database_url, engine)
    yield plane
    plane.close()
    assert plane.broken_rules() == {}


def test_a_job_goes_from_its_submission_to_its_result(plane):
    with plane.scheduler():
        node = plane.node()
        job_id = plane.submit(7)
        assignment, message = node.take()
        assert (assignment.job, assignment.attempt, assignment.node) == (job_id, 1, node.id)
        assert message["headers"]["id"] == job_id
        assert plane.celery_state(job_id) == "ASSIGNED"
        node.start(assignment)
        node.tell(assignment, {"loss": 0.5, "at": 1.0}, {"loss": float("nan"), "at": 2.0})
        assert node.end(assignment, result={"sum": 7}).committed
    job = plane.job(job_id)
    assert (job["state"], job["result"], job["node"]) == ("completed", {"sum": 7}, "fake")
    assert plane.causes(job_id) == [("pending", None), ("assigned", None), ("running", None), ("completed", None)]
