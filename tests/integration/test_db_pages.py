"""What people read: lists of jobs, one job, metrics, counts; all of it ready for JSON."""

from __future__ import annotations

import json
import uuid

from cyxwiz_tasks.states import Cause, JobState
from db import attempts, events, job_pages, metrics, nodes
from db.metrics import NewMetric


def names(found):
    return [job["name"] for job in found]


def test_jobs_are_found_newest_first_a_page_at_a_time(record):
    for number in range(5):
        record.pending(name=f"job {number}")
    first = record.do(job_pages.find, limit=2)
    second = record.do(job_pages.find, limit=2, before=first[-1]["seq"])
    assert names(first + second) == ["job 4", "job 3", "job 2", "job 1"]


def test_jobs_are_found_by_what_they_are(record):
    record.pending(name="Train 100%", owner="ann", priority=2)
    record.pending(name="train 100x", owner="bob", task="other.task")
    placed = record.pending(name="placed", owner="ann")
    record.assign(placed)
    find = lambda **filters: names(record.do(job_pages.find, **filters))  # noqa: E731
    assert find(owner="ann") == ["placed", "Train 100%"]
    assert find(name="TRAIN") == ["placed", "train 100x", "Train 100%"]  # "placed" by its task, cyxwiz.train
    assert find(name="100%") == ["Train 100%"]
    assert find(states=[JobState.ASSIGNED]) == ["placed"]
    assert find(states=[JobState.PENDING], owner="bob") == ["train 100x"]
    assert find(node="one") == find(node=record.node_id) == ["placed"]
    assert find(node="two") == []
    assert record.do(job_pages.find, name="100%")[0]["priority"] == "high"


def test_everything_is_ready_for_json(record):
    id, _ = record.in_state(JobState.COMPLETED)
    for value in (
        record.do(job_pages.find),
        record.job(id),
        record.do(events.of_job, id),
        record.do(events.of_node, record.node_id),
        record.do(nodes.find),
        record.do(job_pages.counts),
    ):
        assert json.loads(json.dumps(value)) == value


def test_events_tell_the_story_in_order(record):
    id, place = record.in_state(JobState.RUNNING)
    record.do(attempts.unplace, record.epoch, [place.token], Cause.NODE_LOST, "one went silent")
    story = record.do(events.of_job, id)
    assert [event["to_state"] for event in story] == ["pending", "assigned", "running", "pending"]
    last = story[-1]
    assert (last["cause"], last["attempt"], last["token"], last["node"]) == ("node_lost", 1, place.token, "one")
    assert last["detail"] == {"attempt_state": "lost", "message": "one went silent"}
    assert record.do(events.of_job, id, after=story[1]["seq"]) == story[2:]
    assert record.do(events.of_node, record.node_id)[0]["to_state"] == "up"


def test_counts_name_every_state(record):
    record.pending()
    record.in_state(JobState.HELD)
    counts = record.do(job_pages.counts)
    assert set(counts) == set(JobState)
    assert (counts["pending"], counts["held"], counts["failed"]) == (1, 1, 0)


def test_metrics_are_kept_once_and_only_of_attempts_that_exist(record):
    id, place = record.in_state(JobState.RUNNING)
    row = NewMetric(id, place.token, record.node_id, 1_700_000_000.25, {"loss": 0.5, "step": 1})
    nan = NewMetric(id, place.token, record.node_id, 1_700_000_001.0, {"loss": float("nan"), "a\x00": "\x00"})
    strangers = [
        NewMetric(id, 999_999, record.node_id, 1.0, {}),
        NewMetric(str(uuid.uuid4()), place.token, record.node_id, 1.0, {}),
        NewMetric(id, place.token, str(uuid.uuid4()), 1.0, {}),
    ]
    assert record.do(metrics.append, [nan, row, *strangers]) == 2
    assert record.do(metrics.append, [row, nan]) == 0
    assert record.do(metrics.append, []) == 0
    rows = record.do(metrics.of_job, id)
    assert [(row["at"], row["values"]) for row in rows] == [
        (1_700_000_000.25, {"loss": 0.5, "step": 1}),
        (1_700_000_001.0, {"loss": "nan", "a\ufffd": "\ufffd"}),
    ]


def test_metrics_of_one_attempt_and_the_newest_of_all(record):
    id, first = record.in_state(JobState.RUNNING)
    record.do(metrics.append, [NewMetric(id, first.token, record.node_id, float(at), {"n": at}) for at in range(5)])
    record.do(attempts.unplace, record.epoch, [first.token], Cause.PREEMPTED)
    second = record.assign(id)[id]
    record.do(metrics.append, [NewMetric(id, second.token, record.node_id, 1.0, {"n": 10})])
    values = lambda **filters: [row["values"]["n"] for row in record.do(metrics.of_job, id, **filters)]  # noqa: E731
    assert values() == [0, 1, 2, 3, 4, 10]
    assert values(attempt=2) == [10]
    assert values(limit=3) == [3, 4, 10]
    assert record.do(metrics.of_job, "no id") == []
