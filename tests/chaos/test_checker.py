"""The checker: a good history passes, and each way to spoil it is found by the invariant that is meant for it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.chaos.checker import judge
from tests.chaos.hand_made import (
    FAR_NODE,
    GANG,
    JOB,
    MOVED,
    NODE,
    OTHER,
    WIDE,
    add_event,
    add_gang,
    add_move,
    attempt,
    fault,
    good,
    job,
    op,
    step,
)
from tests.chaos.history import History, Row, read_history
from tests.chaos.invariants import INVARIANTS

Spoil = Callable[[History], None]


def _end_twice(history: History) -> None:
    add_event(history, JOB, "completed", "failed", 11, epoch=2)


def _note_after_the_end(history: History) -> None:
    add_event(history, JOB, "completed", None, 11, epoch=2)


def _skip_running(history: History) -> None:
    history.record["events"][5]["from_state"] = "pending"


def _lose_an_event(history: History) -> None:
    del history.record["events"][6]


def _complete_twice(history: History) -> None:
    history.record["attempts"][0]["state"] = "completed"


def _older_attempt_wins(history: History) -> None:
    history.record["attempts"][0]["state"], history.record["attempts"][1]["state"] = "completed", "lost"


def _reuse_a_token(history: History) -> None:
    history.record["attempts"][1]["token"] = 10


def _accept_an_older_token(history: History) -> None:
    history.record["events"][6]["token"] = 10


def _place_before_the_end(history: History) -> None:
    history.record["attempts"][0]["ended_at"] = 15.5


def _old_leader_writes(history: History) -> None:
    add_event(history, JOB, None, None, 11, epoch=1)


def _unknown_epoch(history: History) -> None:
    history.record["leadership"] = [{"epoch": 1}]


def _third_on_two_slots(history: History) -> None:
    history.record["attempts"] += [
        attempt(12, 1, "completed", 16.0, 18.0, job_id="x"),
        attempt(13, 1, "completed", 17.0, 18.0, job_id="y"),
    ]


def _two_on_one_gpu(history: History) -> None:
    history.record["attempts"][1]["gpus"] = [0]
    history.record["attempts"].append(attempt(12, 1, "completed", 16.0, 18.0, job_id="x", gpus=[0]))


def _runs_on_after_preemption(history: History) -> None:
    history.record["attempts"][0]["state"] = "preempted"
    history.witness.append(step(JOB, 1, 8, at=16.0))


def _makes_a_step_twice(history: History) -> None:
    history.witness.append(step(JOB, 2, 20, at=17.5, pid=101))


def _training(history: History, *restored: int, first: int = 1, loss: float = 0.5) -> None:
    """The completed job was a training: its first attempt saved step 4, its second did the rest."""
    for line in history.client:
        line["kind"] = "train"
    lines = [row for row in history.witness if row["attempt"] == 1] + [step(JOB, 1, "saving", at=10.45) | {"saved": 4}]
    lines += [step(JOB, 2, "restored", at=15.0, pid=101) | {"restored": at} for at in restored]
    lines += [step(JOB, 2, number, at=15 + number / 10, pid=101) for number in range(first, 21)]
    lines.append(step(JOB, 2, "trained", at=18.0, pid=101) | {"steps": 20, "loss": loss})
    history.witness[:] = lines


def _another_training_ends_otherwise(history: History) -> None:
    _training(history, 4, first=5)
    again = [line | {"job": "job-9", "attempt": 1} for line in history.witness if line["attempt"] == 2]
    history.witness += [*again[1:-1], again[-1] | {"loss": 0.6}]
    history.record["jobs"].append(job("job-9", current_token=19))
    history.record["attempts"].append(attempt(19, 1, "completed", 30.0, 40.0, job_id="job-9"))
    history.client.append(op("submit", "invoke", "job-9", "train"))


def _starts_twice(history: History) -> None:
    history.witness.append(step(JOB, 2, 1, at=17.5, pid=102))


def _held_without_cause(history: History) -> None:
    add_event(history, OTHER, "running", "held", 12, epoch=2)
    history.record["events"][-1]["cause"] = "crashed"


def _fails_by_a_lost_node(history: History) -> None:
    history.jobs[JOB].update(state="failed", cause="node_lost")


def _steps_after_the_cancel(history: History) -> None:
    history.record["attempts"].append(attempt(9, 1, "cancelled", 1.0, 2.0, job_id=OTHER))
    history.witness.append(step(OTHER, 1, 1, at=11.0))


def _same_key_twice(history: History) -> None:
    for one in history.record["jobs"]:
        one["idempotency_key"] = "the key"


def _two_answers_for_a_key(history: History) -> None:
    history.client += [
        op("submit", "ok", JOB, "keyed", value=JOB, key="k"),
        op("submit", "ok", OTHER, "keyed", value=OTHER, key="k"),
    ]


def _chain_breaks(history: History) -> None:
    history.client.append(op("submit", "invoke", JOB, "chain", links=[JOB, "job-9"]))


def _errors_without_end(history: History) -> None:
    for row in history.record["attempts"]:
        row["cause"] = "error"


def _stands_still(history: History) -> None:
    """A node is frozen from second 20 on for 8 s, with a lease of 6."""
    history.run["lease_seconds"] = 6.0
    proof = {"pid": 1, "stopped": True, "node": "one", "frozen_at": 20.0}
    history.nemesis.append(fault(1, "freeze_worker", began_at=19.0, at=28.0, proof=proof))


def _is_lost(history: History, at: float) -> None:
    row = {"seq": 99, "job_id": None, "node_id": NODE, "token": None, "epoch": 2, "cause": None, "at": at}
    history.record["events"].append(row | {"from_state": "suspect", "to_state": "lost"})


def _with(add: Spoil, spoil: Spoil) -> Spoil:
    """With more in it, which is spoilt then."""

    def both(history: History) -> None:
        add(history)
        spoil(history)

    return both


def _member(history: History, lead: int, rank: int) -> Row:
    return next(row for row in history.record["gang_members"] if (row["lead"], row["rank"]) == (lead, rank))


def _steps_of(history: History, number: int, rank: int) -> list[Row]:
    return [row for row in history.witness if (row["job"], row["attempt"], row["rank"]) == (GANG, number, rank)]


def _rank_1_never_was(history: History) -> None:
    for line in _steps_of(history, 2, 1):
        history.witness.remove(line)


#: of a gang, as SPOILT
SPOILT_GANGS: list[tuple[str, Spoil]] = [
    ("G1", lambda h: h.record["gang_members"].pop()),
    ("G1", lambda h: h.record["gang_members"].clear()),
    ("G1", lambda h: _member(h, 30, 1).update(node_id=NODE)),
    ("G1", lambda h: _member(h, 32, 0).update(token=29)),
    ("G1", lambda h: h.witness.append(step(GANG, 2, 1, 31.0, 220, rank=2))),
    ("G2", lambda h: _member(h, 32, 1).update(report=None)),
    ("G2", lambda h: _member(h, 30, 0).update(report=None)),
    ("G2", lambda h: _member(h, 32, 1)["report"].update(outcome="failed")),
    ("G2", lambda h: _member(h, 30, 0).update(report={"outcome": "completed"}) or _all_completed(h)),
    ("G3", lambda h: h.witness.remove(_steps_of(h, 2, 1)[-1])),
    ("G3", lambda h: h.witness.append(_steps_of(h, 2, 0)[-1])),
    ("G3", _rank_1_never_was),
    ("G3", lambda h: _steps_of(h, 2, 1)[0].update(restored=4)),
    ("G4", lambda h: _member(h, 32, 1).update(ended_at=None)),
    ("G4", lambda h: _member(h, 30, 1).update(lead=29)),
    ("I13", lambda h: h.witness.append(step(GANG, 1, 6, 31.0, 200))),
    ("I18", lambda h: h.record["nodes"][-1].update(slots=0)),
    ("J2", lambda h: h.client[-2].update(kind="gang_fails")),
    ("M1", lambda h: h.witness.append(step(GANG, 2, 21, 33.0, 220, rank=1))),
]


def _all_completed(history: History) -> None:
    for one in history.record["gang_members"]:
        one["report"] = {"outcome": "completed"}


@pytest.mark.parametrize("zombies", [0, 1])
def test_a_gang_that_went_well_passes_also_where_a_lost_node_ran_on(zombies: int):
    history = good()
    add_gang(history)
    history.witness += zombies * [step(GANG, 1, 6, 31.0, 201, rank=1)]
    verdict = judge(history)
    assert not any(verdict.violations.values()), verdict.violations
    assert verdict.facts["gang_attempts"] == 2
    assert verdict.facts["attempts_that_ran_on_after_being_replaced"] == zombies


@pytest.mark.parametrize(("name", "spoil"), SPOILT_GANGS)
def test_a_spoilt_gang_fails_by_the_invariant_that_is_meant_for_it(name: str, spoil: Spoil):
    test_a_spoilt_history_fails_by_the_invariant_that_is_meant_for_it(name, _with(add_gang, spoil))


def _note(history: History) -> Row:
    return next(row for row in history.record["events"] if row.get("detail"))


def _sent_as(history: History, job_id: str, kind: str) -> None:
    for line in history.client:
        if line["job"] == job_id:
            line["kind"] = kind


def _of_moved(history: History, number: int, step: int | str) -> Row:
    return next(row for row in history.witness if (row["job"], row["attempt"], row["step"]) == (MOVED, number, step))


def _must_leave_for_ever(history: History) -> None:
    notes = [{**_note(history), "token": 50 + number} for number in range(3)]
    history.record["events"] += notes
    history.record["attempts"] += [
        attempt(note["token"], 3 + number, "preempted", 60.0, 61.0, job_id=MOVED) for number, note in enumerate(notes)
    ]


#: of a job that moved, as SPOILT
SPOILT_MOVES: list[tuple[str, Spoil]] = [
    ("P1", lambda h: _note(h).update(token=39)),
    ("P1", lambda h: _note(h)["detail"].update(node_ids=[FAR_NODE])),
    ("P1", lambda h: _sent_as(h, WIDE, "gpu")),
    ("P1", lambda h: _sent_as(h, MOVED, "urgent")),
    ("P1", lambda h: _sent_as(h, MOVED, "urgent") or _sent_as(h, WIDE, "urgent")),
    ("P1", lambda h: h.witness.remove(_of_moved(h, 1, "saving"))),
    ("P2", _must_leave_for_ever),
    ("P3", lambda h: _of_moved(h, 2, "restored").update(restored=5)),
    ("P3", lambda h: h.witness.remove(_of_moved(h, 2, "restored"))),
    ("I15", lambda h: h.witness.remove(_of_moved(h, 2, 30))),
    ("I15", lambda h: _of_moved(h, 2, "restored").update(restored=9)),
    ("I18", lambda h: h.record["attempts"][-1].update(node_id=NODE)),
]


@pytest.mark.parametrize("kind", ["wide", "urgent"])
def test_a_job_that_gave_its_place_and_went_on_from_what_it_had_saved_passes(kind: str):
    history = good()
    add_move(history)
    _sent_as(history, WIDE, kind)
    verdict = judge(history)
    assert not any(verdict.violations.values()), verdict.violations
    assert (verdict.facts["asked_to_leave"], verdict.facts["of_them_moved"]) == (1, kind == "wide")


def test_who_had_saved_nothing_gives_its_place_to_an_urgent_job_too():
    history = good()
    add_move(history)
    _sent_as(history, WIDE, "urgent")
    history.witness[:] = [row for row in history.witness if row["job"] != MOVED]
    history.witness += [step(MOVED, 2, number, 45 + number / 10, 301) for number in range(1, 41)]
    assert not any(judge(history).violations.values())


def test_who_was_asked_and_whose_node_went_away_first_has_not_given_its_place_back():
    history = good()
    add_move(history)
    _must_leave_for_ever(history)
    history.record["attempts"][-1].update(state="lost")
    assert not judge(history).violations["P2 nobody is asked to leave too often"]


@pytest.mark.parametrize(("name", "spoil"), SPOILT_MOVES)
def test_a_spoilt_move_fails_by_the_invariant_that_is_meant_for_it(name: str, spoil: Spoil):
    test_a_spoilt_history_fails_by_the_invariant_that_is_meant_for_it(name, _with(add_move, spoil))


@pytest.mark.parametrize(("given_up", "late"), [(False, True), (True, False)])
def test_after_a_cancel_only_a_member_that_was_given_up_runs_on(given_up: bool, late: bool):
    history = good()
    add_gang(history)
    history.jobs[GANG].update(state="cancelled", cause="cancelled")
    report = {"outcome": "cancelled"} | ({"taken_back": True} if given_up else {})
    _member(history, 32, 1).update(report=report)
    history.client.append(op("cancel", "ok", GANG, "gang_saves", value="REVOKED", monotonic=26.0))
    history.witness[:] = [row for row in history.witness if (row["job"], row["rank"]) != (GANG, 0)]
    assert bool(judge(history).violations["I21 a cancel is final"]) is late


#: the first word of the invariant, and what must make it fail
SPOILT: list[tuple[str, Spoil]] = [
    ("I1", lambda h: h.client.append(op("submit", "ok", "job-9", "noop", value="job-9"))),
    ("I2", lambda h: h.record["jobs"].append(job("job-9"))),
    ("I3", _same_key_twice),
    ("I3", _two_answers_for_a_key),
    ("I4", lambda h: h.jobs[OTHER].update(state="pending")),
    ("I4", lambda h: h.jobs[OTHER].update(state="held")),
    ("I5", _end_twice),
    ("I5", _lose_an_event),
    ("I6", _end_twice),
    ("I6", _note_after_the_end),
    ("I7", _skip_running),
    ("I7", _end_twice),
    ("I8", _lose_an_event),
    ("I8", lambda h: h.jobs[JOB].update(attempts=1)),
    ("I8", lambda h: h.jobs[JOB].update(current_token=10)),
    ("I9", _complete_twice),
    ("I9", _older_attempt_wins),
    ("I10", _reuse_a_token),
    ("I11", _accept_an_older_token),
    ("I12", _place_before_the_end),
    ("I13", _runs_on_after_preemption),
    ("I15", _makes_a_step_twice),
    ("I15", lambda h: h.witness.pop(9)),
    ("I15", lambda h: _training(h, 5, first=6)),
    ("I15", lambda h: _training(h, 4, first=4)),
    ("I15", lambda h: _training(h, 4, first=6)),
    ("I15", lambda h: _training(h, first=5)),
    ("I15", _another_training_ends_otherwise),
    ("I17", _old_leader_writes),
    ("I17", _unknown_epoch),
    ("I18", _third_on_two_slots),
    ("I18", _two_on_one_gpu),
    ("I20", _errors_without_end),
    ("I21", lambda h: h.jobs[OTHER].update(state="completed")),
    ("I21", _steps_after_the_cancel),
    ("I25", lambda h: h.leftovers["redis"]["lengths"].update({"node.1": 1})),
    ("I25", lambda h: h.leftovers["redis"]["lengths"].update({"cyxwiz.busy.3.0": 2})),
    ("I28", lambda h: h.leftovers["processes"].append({"pid": 7, "ppid": 1, "command": ["sleep"]})),
    ("I28", lambda h: h.leftovers["job_children"].append({"pid": 7, "ppid": 1, "command": ["sleep"]})),
    ("I30", lambda h: h.leftovers["sessions"].update(advisory_locks=1)),
    ("I33", lambda h: h.client.append(op("submit", "fail", JOB, "walk"))),
    ("I35", lambda h: h.leftovers["secrets"].append("node0.log")),
    ("I36", lambda h: h.logs.update(node0='Traceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1\n')),
    ("I36", lambda h: h.logs.update(node0="Task exception was never retrieved\n")),
    ("J1", _held_without_cause),
    ("M1", _starts_twice),
    ("J2", _fails_by_a_lost_node),
    ("J2", lambda h: h.jobs[JOB].update(state="cancelled", cause="cancelled")),
    ("C1", lambda h: h.leftovers["redis"]["states"].update({JOB: "STARTED"})),
    ("C2", lambda h: h.client.append(op("result", "ok", JOB, "walk", outcome="failed"))),
    ("C3", _chain_breaks),
    ("N1", _stands_still),
    ("N1", lambda h: (_stands_still(h), _is_lost(h, 27.9))[0]),
    ("S0", lambda h: h.leftovers["deaths"].append({"name": "node0", "status": 1})),
]


def test_a_good_history_passes():
    verdict = judge(good())
    assert (verdict.word, verdict.doubts) == ("pass", [])
    assert not any(verdict.violations.values())
    assert (verdict.facts["lost"], verdict.facts["doubled"]) == (0, 0)


@pytest.mark.parametrize(("restored", "first"), [((4,), 5), ((), 1)])
def test_a_training_may_go_on_from_what_was_saved_or_begin_anew(restored: tuple[int, ...], first: int):
    history = good()
    _training(history, *restored, first=first)
    verdict = judge(history)
    assert not any(verdict.violations.values()), verdict.violations


@pytest.mark.parametrize(("name", "spoil"), SPOILT)
def test_a_spoilt_history_fails_by_the_invariant_that_is_meant_for_it(name: str, spoil: Spoil):
    history = good()
    spoil(history)
    verdict = judge(history)
    assert verdict.word == "fail"
    [found] = [violations for full, violations in verdict.violations.items() if full.split()[0] == name]
    assert found, verdict.violations


def _chained(first: str, last: str) -> str:
    frames = 'Traceback (most recent call last):\n  File "a.py", line 1\n'
    return f"{frames}{first}\n\nDuring handling of the above exception, another exception occurred:\n\n{frames}{last}\n"


@pytest.mark.parametrize(
    ("first", "last", "word"),
    [
        ("ValueError: of a job", "redis.exceptions.ConnectionError: gone", "pass"),
        ("redis.exceptions.ConnectionError: gone", "KeyError: 1", "fail"),
    ],
)
def test_of_chained_tracebacks_the_last_one_says_what_nobody_handled(first: str, last: str, word: str):
    history = good()
    history.logs["node0"] = _chained(first, last)
    assert judge(history).word == word


def test_a_node_that_stands_still_is_lost_in_time_or_something_else_was_wrong():
    history = good()
    _stands_still(history)
    _is_lost(history, 26.5)
    assert not any(judge(history).violations.values())
    history = good()
    _stands_still(history)
    history.nemesis.append(fault(2, "redis_frozen", began_at=24.0, at=25.0))
    assert not any(judge(history).violations.values())


def test_every_invariant_is_tested():
    assert {name.split()[0] for name in INVARIANTS} == {name for name, _ in SPOILT + SPOILT_GANGS + SPOILT_MOVES}


def test_too_few_faults_that_struck_leave_it_unknown():
    history = good()
    history.run["planned"] = [{"kind": "kill_worker"}] * 2
    history.nemesis.append(fault(1, "kill_worker", hit=False))
    assert judge(history).word == "unknown"


def test_a_fault_that_struck_while_nothing_ran_leaves_it_unknown():
    history = good()
    history.nemesis = [fault(0, "kill_worker", began_at=30.0, at=31.0)]
    [doubt] = judge(history).doubts
    assert "kill_worker never struck while" in doubt


@pytest.mark.parametrize(("kind", "doubts"), [("wide", ["nobody gave its place to a more urgent job"]), ("urgent", [])])
def test_many_jobs_of_which_nobody_took_a_place_leave_it_unknown(kind: str, doubts: list[str]):
    history = good()
    add_move(history)
    _sent_as(history, WIDE, kind)
    history.record["jobs"] += [job(f"job-{number}") for number in range(1000)]
    assert judge(history).doubts == doubts


def test_lost_and_doubled_are_counted():
    history = good()
    history.jobs[JOB].update(state="running")
    _complete_twice(history)
    facts = judge(history).facts
    assert (facts["lost"], facts["doubled"]) == (1, 1)


def test_a_leader_that_was_replaced_may_end():
    history = good()
    history.leftovers["deaths"].append({"name": "scheduler0", "status": 1})
    history.logs["scheduler0"] = "error: epoch 1 is over, epoch 2 leads: stop and stand by\n"
    assert judge(history).word == "pass"


def test_a_job_whose_process_was_killed_may_fail():
    history = good()
    history.jobs[JOB].update(state="failed", cause="crashed")
    history.nemesis.append(fault(1, "kill_job", proof={"job": JOB, "attempt": 2, "pid": 101}))
    assert not judge(history).violations["J2 each job ends as its code says"]


def test_it_reads_the_files_of_a_run(tmp_path):
    made = good()
    (tmp_path / "logs").mkdir()
    for name in ("client", "witness", "nemesis"):
        lines = "".join(json.dumps(line) + "\n" for line in getattr(made, name))
        (tmp_path / f"{name}.jsonl").write_text(lines + '{"cut": "of')
    for name in ("run", "record", "leftovers"):
        (tmp_path / f"{name}.json").write_text(json.dumps(getattr(made, name)))
    for name, text in made.logs.items():
        (tmp_path / "logs" / f"{name}.log").write_text(text)
    assert judge(read_history(tmp_path)).word == "pass"
