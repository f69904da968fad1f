"""Owners share a cluster: who goes first, what each may have, and what people see of it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from cyxwiz_tasks.cli.main import main
from cyxwiz_tasks.errors import InvalidSettings, LimitReached
from cyxwiz_tasks.ids import new_id
from cyxwiz_tasks.settings import settings
from tests.integration.waiting import until


@pytest.fixture
def cyxwiz(plane, monkeypatch):
    """What a command prints."""
    monkeypatch.setenv("CYXWIZ_BROKER_URL", plane.broker_url)
    settings.cache_clear()

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    yield run
    settings.cache_clear()


def usage(plane) -> dict[tuple[str, str | None], dict]:
    return {(row["project"], row["owner"]): row for row in plane.client.usage()}


def test_who_runs_something_lets_others_go_first(plane):
    with plane.scheduler():
        node = plane.node(slots=1)
        plane.submit(1, owner="ann")
        running, _ = node.take()
        plane.submit(2, owner="ann")
        late = plane.submit(3, owner="bob")
        until(lambda: usage(plane)["", "ann"]["past"] > 0)
        assert plane.client.why(late).facts["ahead"] == 0
        assert node.end(running).committed
        assert node.run().job == late
        found = usage(plane)
        assert (found["", "ann"]["running"], found["", None]["weight"]) == (1, 1.0)
        node.run()


def test_a_new_leader_knows_who_had_what(plane):
    with plane.scheduler():
        node = plane.node(slots=1)
        plane.submit(1, owner="ann", project="lab")
        running, _ = node.take()
        plane.submit(2, owner="bob", project="lab")
        until(lambda: usage(plane)["lab", "ann"]["past"] > 0)
        had = usage(plane)["lab", "ann"]
    with plane.scheduler():
        found = usage(plane)
        assert found["lab", "ann"]["past"] >= had["past"]
        assert (found["lab", "ann"]["present"], found["lab", "bob"]["waiting"]) == (had["present"], 1)
        assert node.end(running).committed
        node.run()


def test_a_limit_on_running_jobs_delays(plane):
    with plane.scheduler():
        node = plane.node(slots=4)
        assert plane.client.set_limits("ann", running=1) == {
            "owner": "ann",
            "weight": 1.0,
            "running": 1,
            "waiting": None,
            "per_minute": None,
        }
        plane.submit(1, owner="ann")
        running, _ = node.take()
        second, other = plane.submit(2, owner="ann"), plane.submit(3, owner="bob")
        assert node.run().job == other
        why = plane.client.why(second)
        assert "starts when another job of ann ends: 1 run, and 1 may" in str(why)
        assert plane.job(second)["state"] == "pending"
        plane.client.set_limits("ann", running=2)
        assert node.take()[0].job == second
        assert node.end(running).committed
    with plane.scheduler():
        assert usage(plane)["", "ann"]["limits"]["running"] == 2


def test_a_limit_on_waiting_jobs_refuses_but_for_what_is_known(plane):
    with plane.scheduler():
        plane.client.set_limits("ann", waiting=1)
        id = new_id()
        plane.submit(1, owner="ann", id=id)
        with pytest.raises(LimitReached, match="cyxwiz jobs --owner ann --state pending"):
            plane.submit(2, owner="ann")
        assert plane.submit(1, owner="ann", id=id) == id, "it was recorded before"
        plane.submit(3, owner="bob")
        plane.client.set_limits("ann", waiting=None)
        plane.submit(4, owner="ann")
        assert plane.broken_rules() == {}


def test_a_limit_on_submissions_refuses(plane):
    with plane.scheduler():
        node = plane.node(slots=4)
        plane.client.set_limits("ann", per_minute=2)
        for number in (1, 2):
            plane.submit(number, owner="ann")
            node.run()
        with pytest.raises(LimitReached, match="2 jobs a minute"):
            plane.submit(3, owner="ann")


def test_limits_that_are_none_are_refused(plane):
    with plane.scheduler():
        for wrong in ({"weight": 0}, {"running": -1}, {"waiting": 1.5}, {"per_minute": 0}, {"slots": 3}):
            with pytest.raises(InvalidSettings, match=next(iter(wrong))):
                plane.client.set_limits("ann", **wrong)
        assert usage(plane) == {}


def test_people_see_and_set_it_on_the_command_line(plane, cyxwiz):
    with plane.scheduler():
        plane.node(slots=1)
        plane.submit(1, owner="ann", project="lab")
        assert cyxwiz("limit", "ann", "--running", "4", "--weight", "2").strip() == (
            "ann: running 4, waiting without a limit, submissions a minute without a limit, weight 2"
        )
        shown = cyxwiz("usage")
        assert "lab" in shown
        assert "1/4" in shown
        rows = json.loads(cyxwiz("usage", "--json"))
        assert [(row["project"], row["owner"]) for row in rows] == [("lab", None), ("lab", "ann")]


def test_a_project_takes_back_what_it_owns_and_others_have_borrowed(plane, cyxwiz):
    with plane.scheduler():
        node = plane.node(gpus=2, slots=8)
        places = {}
        for number in (1, 2):
            job_id = plane.submit(number, project="guest", resources={"gpus": 1})
            places[job_id], _ = node.take()
            node.start(places[job_id])
        shown = cyxwiz("quota", "set", "lab", "--gpus", "1", "--borrow-gpus", "0").strip()
        assert shown == "project lab owns 1 GPU and 0 cores, and holds 0 and 0; weight 1"
        own, more = (plane.submit(number, project="lab", resources={"gpus": 1}) for number in (3, 4))
        stop = node.told()
        victim = next(job_id for job_id, attempt in places.items() if attempt.token == stop.token)
        assert (stop.outcome, stop.grace_seconds) == ("preempted", plane.settings.preempt_grace_seconds)
        assert "project lab wants back what it owns" in stop.reason
        assert node.end(places[victim], "preempted", cause="preempted").committed
        running, _ = node.take()
        node.start(running)
        assert running.job == own
        assert "Project lab holds 1 GPU " in str(plane.client.why(more))
        assert "come first" in str(plane.client.why(victim))
        assert plane.client.why(more).facts["quota"] == "reached"
        rows = {row["project"]: row for row in json.loads(cyxwiz("quotas", "--json"))}
        assert (rows["lab"]["held"]["gpus"], rows["guest"]["borrowed"]["gpus"]) == (1, 1)
        assert "lab" in cyxwiz("quotas")
        assert plane.redis.llen(f"cyxwiz.control.{node.id}") == 0, "one place was enough"
    with plane.scheduler():
        assert node.end(running).committed
        assert node.run().job == more, "the next leader knows the quota: it comes before who borrows"
        assert cyxwiz("quota", "remove", "lab", "--json").startswith("{")
        assert plane.client.quotas() == []


def test_who_borrows_goes_rather_than_that_an_owner_takes_what_another_keeps(plane, cyxwiz):
    with plane.scheduler():
        here = plane.node(gpus=4)
        plane.submit(1, project="guest", resources={"gpus": 2})
        guest, _ = here.take()
        here.start(guest)
        there = plane.node(gpus=4)
        cyxwiz("quota", "set", "keeps", "--gpus", "4", "--lend-gpus", "0")
        cyxwiz("quota", "set", "lab", "--gpus", "3")
        own = plane.submit(2, project="lab", resources={"gpus": 3})
        stop = here.told()
        assert (stop.token, stop.outcome) == (guest.token, "preempted")
        assert "once they have given back" in str(plane.client.why(own)), "there it fits, into what is kept"
        assert here.end(guest, "preempted", cause="preempted").committed
        placed, _ = there.take()
        assert placed.job == own


def test_quotas_that_are_none_are_refused(plane):
    with plane.scheduler():
        for wrong in ({"gpus": -1}, {"cpus": 1.5}, {"gpus": None}, {"weight": 0}, {"slots": 1}):
            with pytest.raises(InvalidSettings, match=next(iter(wrong))):
                plane.client.set_quota("lab", **wrong)
        assert plane.client.quotas() == []
