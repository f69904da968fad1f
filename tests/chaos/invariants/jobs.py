"""The life of each job, by its row and its events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cyxwiz_tasks.states import JOB_MOVES, JobState
from tests.chaos.history import ENDED, LIVE, History

#: a client that was told "cancelled" must see no step later than this
_CANCEL_GRACE_SECONDS = 5.0
_BLOWS_TO_HOLD = 3
_FAILING = ("fails", "gang_fails")


def every_job_ends(history: History) -> Iterator[str]:
    for job_id, job in history.jobs.items():
        if job["state"] not in ENDED:
            yield f"job {job_id} is still {job['state']} ({job['cause']}: {job['message']})"


def one_terminal_event(history: History) -> Iterator[str]:
    for job_id, job in history.jobs.items():
        count = sum(event["to_state"] in ENDED for event in history.events.get(job_id, []))
        if count != (job["state"] in ENDED):
            yield f"job {job_id} is {job['state']} and has {count} terminal events"


def nothing_after_the_end(history: History) -> Iterator[str]:
    for job_id, events in history.events.items():
        ended = False
        for event in events:
            if ended:
                yield f"job {job_id}: event {event['seq']} ({event['to_state']}) came after its end"
            ended = ended or event["to_state"] in ENDED


def legal_moves(history: History) -> Iterator[str]:
    for job_id, events in history.events.items():
        state: str | None = None
        for event in events:
            if event["to_state"] is None:
                continue
            if event["from_state"] != state:
                yield f"job {job_id}: event {event['seq']} comes from {event['from_state']}, and it was {state}"
            legal = state is None or event["to_state"] in JOB_MOVES[JobState(state)]
            if not legal:
                yield f"job {job_id}: event {event['seq']} moves it from {state} to {event['to_state']}"
            state = event["to_state"]


def fold_of_events(history: History) -> Iterator[str]:
    for job_id, job in history.jobs.items():
        folded: dict[str, Any] = {"state": None, "attempts": 0, "current_token": None}
        for event in history.events.get(job_id, []):
            if event["to_state"] is not None:
                folded["state"] = event["to_state"]
            if event["to_state"] == "assigned":
                folded["attempts"] += 1
                folded["current_token"] = event["token"]
        for name, value in folded.items():
            if job[name] != value:
                yield f"job {job_id}: its {name} is {job[name]}, and by its events it is {value}"


def held_with_cause(history: History) -> Iterator[str]:
    """A job is set aside after it crashed, or lost its node, three times since it was accepted or released."""
    for job_id, events in history.events.items():
        blows = 0
        for event in events:
            blows += event["from_state"] in LIVE and event["cause"] in ("crashed", "node_lost")
            if event["to_state"] == "held" and blows < _BLOWS_TO_HOLD:
                yield f"job {job_id} was held after {blows} crashes and lost nodes"
            if event["from_state"] == "held":
                blows = 0


def cancel_is_final(history: History) -> Iterator[str]:
    for line in history.ops("cancel", "ok"):
        job_id, job = line["job"], history.jobs.get(line["job"])
        if job is None:
            yield f"job {job_id}: its cancel was answered and it is not in the record"
        elif line["value"] == "REVOKED" and job["state"] != "cancelled":
            yield f"job {job_id}: it was told to be cancelled and is {job['state']}"
        elif job["cancel_requested_at"] is not None and job["state"] not in ENDED:
            yield f"job {job_id}: its cancel was asked for and it is {job['state']}"
        elif line["value"] == "REVOKED":
            yield from _late_steps(history, job_id, line["monotonic"])


def _late_steps(history: History, job_id: str, acknowledged_at: float) -> Iterator[str]:
    for attempt in history.attempts.get(job_id, []):
        for rank, steps in history.steps_by_rank(job_id, attempt["number"]).items():
            if history.given_up(attempt, rank):
                continue  # nobody could tell its node
            late = max(step["monotonic"] for step in steps) - acknowledged_at
            if late > _CANCEL_GRACE_SECONDS:
                yield f"job {job_id}: it made a step {late:.1f} s after it was told to be cancelled"


def expected_outcome(history: History) -> Iterator[str]:
    asked = {line["job"] for line in history.ops("cancel", "ok", "info")} | _raced(history)
    for job_id, job in history.jobs.items():
        submitted = history.submitted.get(job_id)
        if submitted is None or job["state"] not in ENDED:
            continue
        kind, state, cause = submitted["kind"], job["state"], job["cause"]
        expected = ("failed", "error") if kind in _FAILING else ("completed", None)
        allowed = {expected}
        if job_id in asked:
            allowed.add(("cancelled", "cancelled"))
        if history.killed_jobs.get(job_id):
            allowed.add(("failed", "crashed"))
        if (state, cause) not in allowed:
            yield f"job {job_id} ({kind}) is {state}, cause {cause}: {(job['message'] or '')[:200]}"


def _raced(history: History) -> set[str]:
    """Jobs that the nemesis has tried to cancel."""
    return {job for line in history.faults if line["kind"] == "cancel_racing" for job in line["proof"].get("tried", ())}
