"""States, moves and causes: the enums, the tables, the migration and the diagram say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import CheckConstraint

from cyxwiz_tasks.states import JOB_MOVES, LIVE_ATTEMPT_STATES, AttemptState, Cause, JobState, Priority
from db.migrations.versions import v0001_record, v0002_nothing_lost, v0004_dependencies
from db.models import Base, Cordon, NodeState
from db.moves import LIVE, sources, waiting_sources

DIAGRAMS = Path(__file__).parents[2] / "docs" / "states.md"


def words(sql: str) -> set[str]:
    return set(re.findall(r"'(\w+)'", sql))


def check_of(table: str, name: str) -> str:
    constraints = Base.metadata.tables[table].constraints
    (found,) = (c for c in constraints if isinstance(c, CheckConstraint) and str(c.name) == f"ck_{table}_{name}")
    return str(found.sqltext)


@pytest.mark.parametrize(
    ("table", "column", "enum", "migrated"),
    [
        ("jobs", "state", JobState, v0001_record.JOB_STATES),
        ("jobs", "cause", Cause, v0004_dependencies.CAUSES),
        ("attempts", "state", AttemptState, v0001_record.ATTEMPT_STATES),
        ("attempts", "cause", Cause, v0004_dependencies.CAUSES),
        ("events", "cause", Cause, v0004_dependencies.CAUSES),
        ("nodes", "state", NodeState, v0001_record.NODE_STATES),
        ("nodes", "cordon", Cordon, v0002_nothing_lost.CORDONS),
    ],
)
def test_checks_name_exactly_the_members(table, column, enum, migrated):
    assert words(check_of(table, column)) == set(enum) == words(migrated)


def test_the_check_on_priority_has_the_bounds_of_the_enum():
    ranks = [priority.rank for priority in Priority]
    assert check_of("jobs", "priority") == f"priority BETWEEN {min(ranks)} AND {max(ranks)}"


def test_the_diagrams_show_exactly_the_legal_moves():
    job, attempt, node = re.findall(r"```mermaid\n(.*?)```", DIAGRAMS.read_text(), re.DOTALL)
    edges = re.compile(r"^\s*(\w+) --> (\w+)", re.MULTILINE)
    assert set(edges.findall(job)) == {(str(a), str(b)) for a, targets in JOB_MOVES.items() for b in targets}
    ends = set(AttemptState) - LIVE_ATTEMPT_STATES
    moves = {(str(live), str(end)) for live in LIVE_ATTEMPT_STATES for end in ends} | {("assigned", "running")}
    assert set(edges.findall(attempt)) == moves
    assert {state for edge in edges.findall(node) for state in edge} == set(NodeState)


def test_the_document_explains_every_state_and_cause():
    explained = set(re.findall(r"^\| `(\w+)` \|", DIAGRAMS.read_text(), re.MULTILINE))
    assert explained == set(JobState) | set(Cause) | set(NodeState) | set(Cordon)


def test_sources_are_the_moves_turned_round():
    for to in JobState:
        assert sources(to) == sorted(str(state) for state in JobState if to in JOB_MOVES[state])
        assert not set(waiting_sources(to)) & set(LIVE)


def test_a_live_attempt_and_its_job_have_states_of_one_name():
    assert {JobState(state) for state in LIVE} == {JobState.ASSIGNED, JobState.RUNNING}
