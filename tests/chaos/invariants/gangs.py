"""Gangs: one job on two nodes at once, placed as a whole and ended as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import ENDED, GANG_SIZE, GANGS, LIVE, History, Row
from tests.chaos.invariants.witness import goes_on, saved_before

#: steps of each rank, of kinds whose every rank makes them all
_STEPS = {"gang": 20, "gang_saves": 20, "gang_urgent": 20}


def all_or_none(history: History) -> Iterator[str]:
    """Each attempt has all members, on different nodes, and nobody else makes its steps."""
    for job_id, attempt in _attempts(history):
        what, members = f"job {job_id}: attempt {attempt['number']}", history.members.get(attempt["token"], [])
        ranks = [member["rank"] for member in members]
        if ranks != list(range(GANG_SIZE)):
            yield f"{what} has the ranks {ranks} of {GANG_SIZE}"
        if len({member["node_id"] for member in members}) < len(members):
            yield f"{what} has two members on one node"
        if members and (members[0]["token"], members[0]["node_id"]) != (attempt["token"], attempt["node_id"]):
            yield f"{what} is not that of its rank 0"
        if strangers := set(history.steps_by_rank(job_id, attempt["number"])) - set(ranks):
            yield f"{what} has steps of the ranks {sorted(strangers)}, which are not in the record"


def ends_as_a_whole(history: History) -> Iterator[str]:
    """An attempt is over when each member's last word is recorded, and completed if all of them are."""
    for job_id, attempt in _attempts(history):
        what, members = f"job {job_id}: attempt {attempt['number']}", history.members.get(attempt["token"], [])
        if attempt["state"] in LIVE:
            continue
        unheard = [member["rank"] for member in members if member["ended_at"] is None or not member["report"]]
        if unheard:
            yield f"{what} is {attempt['state']}, and of the ranks {unheard} no end is known"
            continue
        outcomes = [member["report"]["outcome"] for member in members]
        if (attempt["state"] == "completed") != all(outcome == "completed" for outcome in outcomes):
            yield f"{what} is {attempt['state']}, and its members are {outcomes}"


def every_rank_made_its_steps(history: History) -> Iterator[str]:
    """Of what is completed every rank made each step once, from what rank 0 had saved in an attempt before."""
    for job_id, attempt in _attempts(history):
        number, steps = attempt["number"], _STEPS.get(history.kind(job_id) or "")
        if attempt["state"] != "completed" or steps is None:
            continue
        saved, by_rank = saved_before(history, job_id, number), history.steps_by_rank(job_id, number)
        for rank in range(GANG_SIZE):
            for wrong in goes_on(by_rank.get(rank, []), saved, steps):
                yield f"job {job_id}: rank {rank} of attempt {number} {wrong}"


def no_place_is_kept(history: History) -> Iterator[str]:
    """No member holds its place once its job has ended."""
    by_token = {row["token"]: row for rows in history.attempts.values() for row in rows}
    for lead, members in history.members.items():
        attempt = by_token.get(lead)
        if attempt is None:
            yield f"members of {lead} are in the record, and no attempt of that token is"
        elif history.jobs[attempt["job_id"]]["state"] in ENDED:
            for member in members:
                if member["ended_at"] is None:
                    yield f"job {attempt['job_id']} has ended, and its rank {member['rank']} holds a place"


def _attempts(history: History) -> Iterator[tuple[str, Row]]:
    """The attempts of gangs, each with its job."""
    for job_id, attempts in history.attempts.items():
        if history.kind(job_id) in GANGS:
            yield from ((job_id, attempt) for attempt in attempts)
