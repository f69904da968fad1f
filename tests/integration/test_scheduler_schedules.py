"""Schedules over a real record: each moment has one job, whoever leads and however late."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cyxwiz_tasks.cli.main import main
from cyxwiz_tasks.errors import InvalidJob, NotFound
from cyxwiz_tasks.protocol.names import REJECTED
from cyxwiz_tasks.settings import settings
from tests.integration.waiting import until

#: it does not come while a test runs
LEAP_DAY = "0 0 29 2 *"


def due_seconds_ago(plane, seconds):
    """Let all schedules have been due so long ago; a leader that runs does not look before its next turn."""
    with plane.engine.begin() as tx:
        tx.execute(
            text("UPDATE schedules SET next_at = statement_timestamp() - make_interval(secs => :seconds)"),
            {"seconds": seconds},
        )


def test_a_missed_moment_is_made_up_for_once(plane):
    with plane.scheduler():
        made = plane.client.schedule(
            "nightly", plane.signature(7), cron=LEAP_DAY, timezone="Europe/Berlin", priority="high", time_limit="1h"
        )
        skipped = plane.client.schedule("strict", plane.signature(8), cron=LEAP_DAY, catch_up=False)
        assert plane.client.jobs() == []
    due_seconds_ago(plane, 5 * 86_400)
    for _ in range(2):  # the second leader finds nothing to do
        with plane.scheduler():
            until(lambda: all(row["next_at"] >= made["next_at"] for row in plane.client.schedules()))
            [job] = plane.client.jobs()
            assert (job["name"], job["priority"], job["state"]) == ("nightly", "high", "pending")
            nightly, strict = plane.client.schedules()
            assert (nightly["last_job_id"], nightly["next_at"]) == (job["id"], made["next_at"])
            assert (strict["last_job_id"], strict["next_at"]) == (None, skipped["next_at"])
    with plane.scheduler():
        node = plane.node()
        assignment, message = node.take()
        assert assignment.job == job["id"] == message["headers"]["id"] == message["properties"]["correlation_id"]
        assert message["headers"]["argsrepr"] == "(7,)"
        assert node.end(assignment).committed


@pytest.mark.parametrize("option", ["expires", "countdown"])
def test_a_signature_that_names_a_moment_is_no_schedule(plane, option):
    with plane.scheduler(), pytest.raises(InvalidJob, match=f"{option}: is a moment"):
        plane.client.schedule("nightly", plane.signature(7, **{option: 3600}), cron=LEAP_DAY)


def test_a_moment_that_comes_again_has_its_job_already(plane):
    with plane.scheduler():
        plane.client.schedule("rare", plane.signature(), cron=LEAP_DAY)
    due_seconds_ago(plane, 30)
    with plane.engine.begin() as tx:
        moment = tx.execute(text("SELECT next_at FROM schedules")).scalar_one()
    with plane.scheduler():
        until(lambda: len(plane.client.jobs()) == 1)
        node = plane.node()
        node.run()
    # As if an older record had been brought back.
    with plane.engine.begin() as tx:
        tx.execute(text("UPDATE schedules SET next_at = :moment, last_at = NULL"), {"moment": moment})
    with plane.scheduler():
        until(lambda: plane.client.schedules()[0]["last_at"] is not None)
        found = [job for job in plane.client.jobs() if job["id"] == plane.client.schedules()[0]["last_job_id"]]
        assert [job["state"] for job in found] == ["completed"]
        plane.client.unschedule("rare")
        assert plane.client.schedules() == []


@pytest.mark.parametrize("limit", ["waiting", "per_minute"])
def test_a_job_that_its_owners_limits_refuse_is_tried_again_and_told(plane, monkeypatch, limit):
    monkeypatch.setenv("CYXWIZ_BROKER_URL", plane.broker_url)
    settings.cache_clear()
    with plane.scheduler():
        plane.client.set_limits("ann", **{limit: 1})
        plane.client.submit(plane.signature(), owner="ann")  # waits: there is no node
        made = plane.client.schedule("nightly", plane.signature(2), cron=LEAP_DAY, owner="ann")
        assert made["refused"] is False
        due_seconds_ago(plane, 5)
        plane.client.schedule("other", plane.signature(3), cron=LEAP_DAY)  # so that the leader looks again
        until(lambda: plane.client.schedules()[0]["refused"])
        row = plane.client.schedules()[0]
        assert (row["last_at"], row["last_job_id"]) == (None, None)
        assert row["next_at"] < made["next_at"]
        assert "tried again at NEXT: nightly\n" in CliRunner().invoke(main, ["schedules"]).output
        assert [job["owner"] for job in plane.client.jobs()] == ["ann"]
        assert plane.redis.llen(REJECTED) == 0
        plane.client.set_limits("ann", **{limit: None})
        due_seconds_ago(plane, 0)
        plane.client.unschedule("other")
        until(lambda: len(plane.client.jobs()) == 2)
        [row] = plane.client.schedules()
        assert (row["refused"], row["next_at"]) == (False, made["next_at"])
        assert row["last_job_id"] == plane.client.jobs()[0]["id"]
    settings.cache_clear()


def test_schedules_on_the_command_line_and_their_mistakes(plane, monkeypatch):
    monkeypatch.setenv("CYXWIZ_BROKER_URL", plane.broker_url)
    settings.cache_clear()

    def cyxwiz(*words):
        return CliRunner().invoke(main, ["schedule", *words] if words[0] != "schedules" else list(words))

    training = ("--", "--model", "cnn", "--dataset", "digits", "--priority", "low")
    with plane.scheduler():
        added = cyxwiz("add", "nightly", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin", *training)
        assert added.output.startswith("nightly: first at "), added.output
        [row] = json.loads(cyxwiz("schedules", "--json").output)
        assert (row["name"], row["cron"], row["timezone"]) == ("nightly", "0 3 * * *", "Europe/Berlin")
        assert "nightly" in cyxwiz("schedules").output
        again = cyxwiz("add", "nightly", "--cron", "0 4 * * *", *training)
        assert (again.exit_code, again.stderr) == (
            2,
            "error: name: there is a schedule 'nightly'. Remove it first: cyxwiz schedule remove nightly\n",
        )
        assert (
            "cron: '0 25 * * *' cannot be read (bad hour)"
            in cyxwiz("add", "x", "--cron", "0 25 * * *", *training).stderr
        )
        assert (
            "grid: is for jobs that are sent once"
            in cyxwiz("add", "x", "--cron", "0 3 * * *", *training, "--grid", "seed=1,2").stderr
        )
        assert (
            "epochs: must be more than 0"
            in cyxwiz("add", "x", "--cron", "0 3 * * *", *training, "--epochs", "0").stderr
        )
        assert cyxwiz("remove", "nightly").output == "nightly removed\n"
        with pytest.raises(NotFound, match="there is no schedule 'nightly'"):
            plane.client.unschedule("nightly")
        with pytest.raises(InvalidJob, match="after: is of single jobs"):
            plane.client.schedule("x", plane.signature(), cron="0 3 * * *", after="x")
    settings.cache_clear()
