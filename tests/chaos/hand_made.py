"""Histories made by hand: one in which all is well, to be spoilt by the checker's own tests."""

from __future__ import annotations

from typing import Any

from tests.chaos.history import History, Row

NODE = "node-1"
JOB, OTHER, GANG, MOVED, WIDE = "job-1", "job-2", "job-3", "job-4", "job-5"
FAR_NODE = "node-2"


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


def add_gang(history: History) -> None:
    """A gang that saves. Its rank 1's node was lost after five steps, which rank 0 had saved; then it was completed."""
    history.record["nodes"].append({"id": FAR_NODE, "name": "two", "slots": 2})
    history.record["jobs"].append(job(GANG, current_token=32, attempts=2))
    history.record["attempts"] += [
        attempt(30, 1, "lost", 22.0, 26.0, job_id=GANG, cause="node_lost"),
        attempt(32, 2, "completed", 30.0, 35.0, job_id=GANG),
    ]
    lost = {"outcome": "failed", "cause": "node_lost", "taken_back": True}
    history.record["gang_members"] = [
        member(30, 0, NODE, {"outcome": "preempted"}),
        member(30, 1, FAR_NODE, lost),
        member(32, 0, NODE, {"outcome": "completed"}),
        member(32, 1, FAR_NODE, {"outcome": "completed"}),
    ]
    moves = [(None, "pending", None), ("pending", "assigned", 30), ("assigned", "running", 30)]
    moves += [("running", "pending", 30), ("pending", "assigned", 32), ("assigned", "running", 32)]
    for before, after, token in [*moves, ("running", "completed", 32)]:
        add_event(history, GANG, before, after, token, epoch=2)
    history.client += [op("submit", "invoke", GANG, "gang_saves"), op("submit", "ok", GANG, "gang_saves", value=GANG)]
    for rank in (0, 1):
        history.witness += [step(GANG, 1, number, 22 + number / 10, 200 + rank, rank) for number in range(1, 6)]
        history.witness.append(step(GANG, 2, "restored", 30.0, 210 + rank, rank) | {"restored": 5})
        history.witness += [step(GANG, 2, number, 30 + number / 10, 210 + rank, rank) for number in range(6, 21)]
    history.witness.append(step(GANG, 1, "saving", 22.6, 200) | {"saved": 5})


def add_move(history: History) -> None:
    """A job on a GPU saves ten steps, and moves to another node, since one that needs two GPUs takes all of its own."""
    history.record["nodes"].append({"id": FAR_NODE, "name": "two", "slots": 2})
    history.record["jobs"] += [job(MOVED, current_token=42, attempts=2), job(WIDE, current_token=41, attempts=1)]
    history.record["attempts"] += [
        attempt(40, 1, "preempted", 40.0, 44.0, job_id=MOVED, gpus=[0], cause="preempted"),
        attempt(41, 1, "completed", 45.0, 50.0, job_id=WIDE, gpus=[0, 1]),
        attempt(42, 2, "completed", 45.0, 50.0, job_id=MOVED, gpus=[0], node_id=FAR_NODE),
    ]
    for before, after, token in [(None, "pending", None), ("pending", "assigned", 40), ("assigned", "running", 40)]:
        add_event(history, MOVED, before, after, token, epoch=2)
    add_event(history, MOVED, None, None, 40, epoch=2)
    history.record["events"][-1]["detail"] = {"preempted_for": WIDE, "node_ids": [NODE]}
    moves = [("running", "pending", 40), ("pending", "assigned", 42)]
    moves += [("assigned", "running", 42), ("running", "completed", 42)]
    for before, after, token in moves:
        add_event(history, MOVED, before, after, token, epoch=2)
    moves = [(None, "pending", None), ("pending", "assigned", 41), ("assigned", "running", 41)]
    for before, after, token in [*moves, ("running", "completed", 41)]:
        add_event(history, WIDE, before, after, token, epoch=2)
    for id, kind in ((MOVED, "saves"), (WIDE, "wide")):
        history.client += [op("submit", "invoke", id, kind), op("submit", "ok", id, kind, value=id)]
    history.witness += [step(MOVED, 1, number, 40 + number / 10, 300) for number in range(1, 11)]
    history.witness += [step(MOVED, 1, what, 41.0, 300) | {"saved": 10} for what in ("saving", "saved")]
    history.witness.append(step(MOVED, 2, "restored", 45.0, 301) | {"restored": 10})
    history.witness += [step(MOVED, 2, number, 45 + number / 10, 301) for number in range(11, 41)]
    history.witness += [step(WIDE, 1, number, 45 + number / 10, 302) for number in range(1, 21)]


def member(lead: int, rank: int, node_id: str, report: Row | None, ended_at: float | None = 25.0) -> Row:
    row = {"token": lead + rank, "lead": lead, "rank": rank, "node_id": node_id, "gpus": []}
    return row | {"ended_at": ended_at, "report": report}


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


def step(job_id: str, number: int, at_step: int | str, at: float, pid: int = 100, rank: int = 0) -> Row:
    return {"job": job_id, "attempt": number, "rank": rank, "step": at_step, "pid": pid, "monotonic": at}


def fault(number: int, kind: str, **fields: Any) -> Row:
    row = {"event": "ended", "number": number, "kind": kind, "hit": True, "proof": {"pid": 1}, "error": None}
    return row | {"began_at": 1.0, "at": 2.0} | fields
