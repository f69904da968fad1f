"""Nodes, their devices and their history."""

from __future__ import annotations

import uuid

import pytest

from cyxwiz_tasks.errors import ProtocolError
from cyxwiz_tasks.states import Cause, JobState
from db import events, nodes
from db.known_nodes import known
from db.models import Cordon, NodeState
from tests.integration.record import capability
from tests.integration.waiting import until


def of(record, node_id):
    (found,) = record.do(nodes.find, name=node_id)
    return found


def history(record, node_id):
    return [(event["from_state"], event["to_state"]) for event in record.do(events.of_node, node_id)]


def test_a_node_shows_what_it_said(record):
    id = record.register(name="gpu-box", gpus=2, region="eu", labels={"rack": 7, "text": "\x00"})
    page = of(record, "gpu-box")
    assert (page["id"], page["state"], page["slots"], page["region"]) == (id, "up", 4, "eu")
    assert page["labels"] == {"rack": 7, "text": "\ufffd"}
    assert [device["index"] for device in page["devices"]] == [0, 1]
    assert page["devices"][0]["memory_bytes"] == 80 << 30
    assert (page["assigned"], page["running"], page["telemetry"]) == (0, 0, None)
    assert history(record, id) == [(None, "up")]


def test_a_node_that_comes_back_under_its_incarnation_makes_no_event(record):
    id = record.register(gpus=2)
    record.register(id, gpus=1)
    assert len(of(record, id)["devices"]) == 1
    assert history(record, id) == [(None, "up")]


def test_a_node_that_was_restarted_makes_one(record):
    id = record.register()
    node = nodes.Registration(id, "one", "one@box", "i2", capability(gpus=0))
    before = record.do(nodes.register, record.epoch, node)
    assert (before.state_before, before.incarnation_before) == (NodeState.UP, "i1")
    assert of(record, id)["devices"] == []
    assert history(record, id) == [(None, "up"), ("up", "up")]


def test_a_new_node_was_nothing_before(record):
    node = nodes.Registration(str(uuid.uuid4()), "two", "two@box", "i1", capability())
    found = record.do(nodes.register, record.epoch, node)
    assert (found.state_before, found.incarnation_before, found.reputation) == (None, None, 1.0)


def test_states_of_a_node(record):
    id = record.register()
    mark = lambda state, cause=None: record.do(nodes.mark, record.epoch, [id], state, cause)  # noqa: E731
    assert mark(NodeState.SUSPECT)
    assert not mark(NodeState.SUSPECT)
    assert mark(NodeState.UP)
    assert mark(NodeState.LOST, Cause.NODE_LOST)
    assert not mark(NodeState.UP)
    assert of(record, id)["left_at"] is not None
    assert mark(NodeState.LEFT)
    record.register(id)
    assert of(record, id)["left_at"] is None
    assert history(record, id) == [
        (None, "up"),
        ("up", "suspect"),
        ("suspect", "up"),
        ("up", "lost"),
        ("lost", "left"),
        ("left", "up"),
    ]


def test_telemetry_is_the_newest_and_time_up_grows(record):
    id, lost = record.register(), record.register()
    record.do(nodes.mark, record.epoch, [lost], NodeState.LOST)
    assert record.do(nodes.seen, {id: {"cpu_percent": 5.0, "x": float("nan")}, lost: {}, str(uuid.uuid4()): None}) == 1
    assert record.do(nodes.seen, {id: None}) == 1
    page = of(record, id)
    assert page["telemetry"] == {"cpu_percent": 5.0, "x": "nan"}
    assert 0 < page["up_seconds"] < 60
    assert of(record, lost)["up_seconds"] == 0


def test_what_runs_is_counted(record):
    record.in_state(JobState.RUNNING)
    record.in_state(JobState.ASSIGNED)
    record.in_state(JobState.COMPLETED)
    page = of(record, record.node_id)
    assert (page["assigned"], page["running"]) == (1, 1)


def test_nodes_are_found_by_state_and_name(record):
    id = record.register(name="two")
    assert record.do(nodes.mark, record.epoch, [id, str(uuid.uuid4())], NodeState.SUSPECT) == {id}
    assert [node["name"] for node in record.do(nodes.find)] == ["one", "two"]
    assert [node["name"] for node in record.do(nodes.find, states=[NodeState.SUSPECT])] == ["two"]
    assert [node["name"] for node in record.do(nodes.find, limit=1)] == ["one"]
    assert record.do(nodes.find, name="three") == []


def test_reputations_are_kept(record):
    assert record.do(nodes.rate, {record.node_id: 0.5, str(uuid.uuid4()): 0.1}) == 1
    assert of(record, record.node_id)["reputation"] == 0.5


def test_a_node_needs_a_uuid():
    with pytest.raises(ProtocolError, match="not the id"):
        nodes.Registration("box", "one", "one@box", "i1", capability())


def test_a_cordon_stays_until_it_is_taken_away(record):
    id = record.register()
    cordon = lambda kind, *values: record.do(nodes.cordon, record.epoch, id, kind, *values)  # noqa: E731
    assert cordon(Cordon.QUARANTINED, 3600.0, "3 faults in a row")
    page = of(record, id)
    assert (page["state"], page["cordon"], page["cordon_reason"]) == ("up", "quarantined", "3 faults in a row")
    assert (page["quarantines"], 3590 < page["cordon_seconds_left"] <= 3600) == (1, True)
    assert not cordon(Cordon.QUARANTINED, 7200.0), "it is in quarantine already"
    assert cordon(Cordon.DRAINING, None, "new driver"), "a person's word stands over the scheduler's"
    assert not cordon(Cordon.QUARANTINED, 60.0)
    node = nodes.Registration(id, "one", "one@box", "i2", capability())
    assert record.do(nodes.register, record.epoch, node).cordon == Cordon.DRAINING
    assert [node.cordon for node in record.do(known) if node.id == id] == ["draining"]
    assert record.do(nodes.uncordon, record.epoch, id) == Cordon.DRAINING
    assert record.do(nodes.uncordon, record.epoch, id) is None
    page = of(record, id)
    assert (page["cordon"], page["cordon_reason"], page["quarantines"]) == (None, None, 0)
    notes = [event["detail"] for event in record.do(events.of_node, id) if event["to_state"] is None]
    assert [note.get("cordon") or note["uncordoned"] for note in notes] == ["quarantined", "draining", "draining"]


def test_a_quarantine_ends_by_the_databases_clock_and_leaves_a_node_on_probation(record):
    id = record.register()
    record.do(nodes.count_faults, {id: (3, 0)})
    record.do(nodes.cordon, record.epoch, id, Cordon.QUARANTINED, 0.2)
    assert record.do(nodes.quarantines_over) == []
    until(lambda: record.do(nodes.quarantines_over) == [id])
    record.do(nodes.uncordon, record.epoch, id, forgive=False)
    page = of(record, id)
    assert (page["cordon"], page["faults"], page["quarantines"]) == (None, 0, 1)
