"""Histories made by hand: one in which all is well, to be spoilt by the checker's own tests."""

from __future__ import annotations

from typing import Any

from tests.chaos.history import History, Row

NODE = "node-1"
JOB, OTHER = "job-1", "job-2"


def good() -> History:
    """Two jobs: one lost its node and was completed by its second attempt, one was cancelled while it waited."""
    made = History(
        run={"seed": 1, "planned": [{"kind": "kill_worker"}], "began_at": 0.0, "ended_at": 60.0},
        nemesis=[fault(0, "kill_worker", began_at=12.0, at=12.5)],
        record={
            "leadership": [{"epoch": 2}],
            "nodes": [{"id": NODE, "name": "one", "slots": 2}],
            "jobs": [job(JOB, current_token=11, attempts=2), job(OTHER, "cancelled", cause="cancelled")],
            "attempts": [
                attempt(10, 1, "lost", 10.0, 14.0, cause="node_lost"),
                attempt(11, 2, "completed", 15.0, 20.0),
            ],
            "events": [],
        },
        leftovers={
            "redis": {"lengths": {"cyxwiz.beats": 1}, "states": {JOB: "SUCCESS", OTHER: "REVOKED"}},
            "job_children": [],
            "processes": [],
            "sessions": {"sessions": 0, "advisory_locks": 0, "prepared_transactions": 0},
            "secrets": [],
            "deaths": [{"name": "node0", "status": -9, "pid": 1, "at": 12.0}],
        },
        logs={"scheduler0": "all is well\n"},
    )
    moves = [(None, "pending", None), ("pending", "assigned", 10), ("assigned", "running", 10)]
    moves += [("running", "pending", 10), ("pending", "assigned", 11), ("assigned", "running", 11)]
    moves += [("running", "completed", 11)]
    for before, after, token in moves:
        add_event(made, JOB, before, after, token)
    add_event(made, OTHER, None, "pending", None)
    add_event(made, OTHER, "pending", "cancelled", None, epoch=2)
    for id, kind in ((JOB, "walk"), (OTHER, "cancelled")):
        made.client += [op("submit", "invoke", id, kind), op("submit", "ok", id, kind, value=id)]
    made.client += [op("cancel", "ok", OTHER, "cancelled", value="REVOKED", monotonic=5.0)]
    made.client += [op("result", "ok", JOB, "walk", outcome="completed")]
    made.witness += [step(JOB, 1, number, at=10 + number / 10) for number in range(1, 8)]
    made.witness += [step(JOB, 2, number, at=15 + number / 10, pid=101) for number in range(1, 21)]
    return made


def job(id: str, state: str = "completed", **fields: Any) -> Row:
    empty = {"cause": None, "message": None, "attempts": 0, "current_token": None, "owner": "me"}
    return {"id": id, "state": state, "idempotency_key": None, "cancel_requested_at": None, **empty, **fields}


def attempt(token: int, number: int, state: str, begins: float, ends: float | None, **fields: Any) -> Row:
    times = {"assigned_at": begins, "ended_at": ends}
    row = {"token": token, "job_id": JOB, "number": number, "node_id": NODE, "state": state, "gpus": [], "cause": None}
    return row | times | fields


def add_event(history: History, job_id: str, before: str | None, after: str | None, token: Any, epoch: int = 1) -> None:
    events = history.record["events"]
    row = {"seq": len(events) + 1, "job_id": job_id, "node_id": None, "token": token, "epoch": epoch}
    events.append(row | {"from_state": before, "to_state": after, "cause": None})


def op(name: str, type: str, job_id: str, kind: str, **fields: Any) -> Row:
    return {"op": name, "type": type, "job": job_id, "kind": kind, "key": None, "at": 1.0, "monotonic": 1.0, **fields}


def step(job_id: str, number: int, at_step: int | str, at: float, pid: int = 100) -> Row:
    return {"job": job_id, "attempt": number, "step": at_step, "pid": pid, "monotonic": at}


def fault(number: int, kind: str, **fields: Any) -> Row:
    row = {"event": "ended", "number": number, "kind": kind, "hit": True, "proof": {"pid": 1}, "error": None}
    return row | {"began_at": 1.0, "at": 2.0} | fields
