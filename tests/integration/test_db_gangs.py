"""The members of gangs in the record: what they say counts while their gang's attempt does."""

from __future__ import annotations

import math

import pytest
from sqlalchemy import text

from cyxwiz_tasks.errors import ProtocolError
from cyxwiz_tasks.states import AttemptState, Cause, JobState
from db import gangs, usage
from db.attempts import Assigned, Start
from db.gangs import MemberEnd, NewMember

MEAN_LIFE = 3600.0 / math.log(2)


def gang(record) -> tuple[Assigned, list[int]]:
    """A gang of two on two nodes: its attempt, and the tokens of its members."""
    id = record.pending(resources={"nodes": 2, "gpus": 1}, owner="ann")
    lead = record.assign(id)[id]
    other = record.register(name="two")
    members = [
        NewMember(node, "i1", (0,), 1 << 30, 1, 1 << 30, lead=lead.token, rank=rank)
        for rank, node in enumerate((record.node_id, other))
    ]
    tokens = record.do(gangs.place, members)
    return lead, [tokens[lead.token, rank] for rank in range(2)]


def ended(record, lead: Assigned, token: int, node_id: str | None = None, **report) -> set[int]:
    [member] = [one for one in record.do(gangs.live).get(lead.job_id, []) if one.token == token] or [None]
    node = node_id or (member.node_id if member else record.node_id)
    return record.do(gangs.end, [MemberEnd(lead.job_id, token, node, {"outcome": "completed", **report})])


def test_rank_0_has_the_attempts_token_and_the_others_higher_ones(record):
    lead, tokens = gang(record)
    assert tokens[0] == lead.token
    assert tokens[1] > lead.token
    found = record.do(gangs.live)[lead.job_id]
    assert [(one.rank, one.token, one.started, one.report) for one in found] == [
        (0, tokens[0], False, None),
        (1, tokens[1], False, None),
    ]


def test_a_members_end_counts_once_and_from_its_own_node_alone(record):
    lead, tokens = gang(record)
    assert ended(record, lead, tokens[1], node_id=record.node_id) == set(), "it runs elsewhere"
    assert ended(record, lead, tokens[1], result={"loss": 0.5}) == {tokens[1]}
    assert ended(record, lead, tokens[1]) == set(), "the first word counts"
    assert record.do(gangs.live)[lead.job_id][1].report == {"outcome": "completed", "result": {"loss": 0.5}}
    assert record.state(lead.job_id) == JobState.ASSIGNED, "the gang goes on"


@pytest.mark.parametrize("job_state", [JobState.PENDING, JobState.FAILED])
def test_nothing_of_a_member_counts_once_its_gangs_attempt_is_over(record, job_state):
    lead, tokens = gang(record)
    nodes = [one.node_id for one in record.do(gangs.live)[lead.job_id]]
    record.end(lead, AttemptState.FAILED, job_state, cause=Cause.ERROR)
    record.do(gangs.close, [lead.token])
    starts = [Start(lead.job_id, token, node, 1, "cpu") for token, node in zip(tokens, nodes, strict=True)]
    assert record.do(gangs.start, starts) == 0
    assert ended(record, lead, tokens[1], node_id=nodes[1]) == set()
    assert record.do(gangs.live) == {}
    members = record.do(gangs.of_job, lead.job_id)
    assert [(one["attempt"], one["rank"], one["ended_at"] is not None) for one in members] == [
        (1, 0, True),
        (1, 1, True),
    ]


def test_a_gang_that_is_over_keeps_how_its_members_ended_and_not_what_they_returned(record):
    lead, tokens = gang(record)
    ended(record, lead, tokens[0], result="large", message="fine")
    record.do(gangs.close, [lead.token])
    [first, _] = record.do(gangs.of_job, lead.job_id)
    assert (first["outcome"], first["message"]) == ("completed", "fine")
    assert "result" not in record.do(gangs.live)[lead.job_id][0].report


def test_all_places_of_a_gang_count_for_its_owner(record):
    gang(record)
    move = "UPDATE attempts SET assigned_at = statement_timestamp() - interval '20 hours'"
    record.do(lambda tx: tx.execute(text(move)))
    [(_, owner, past)] = record.do(usage.decayed, (100, 4, 1 << 40, 1000, 1 << 40), MEAN_LIFE)
    assert (owner, past) == ("ann", pytest.approx(2 / 4, rel=1e-3)), "two of four GPUs"


def test_a_report_that_no_table_can_hold_is_refused():
    with pytest.raises(ProtocolError, match="exit_code"):
        MemberEnd(
            "0" * 8 + "-0000-4000-8000-" + "0" * 12, 1, "0" * 8 + "-0000-4000-8000-" + "0" * 12, {"exit_code": 2**40}
        )
