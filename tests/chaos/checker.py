"""The verdict on a run: a pure function of its files, so that old runs can be judged again when it improves.

`pass` needs every invariant to hold. `unknown`: all hold, but too few of the planned faults struck, or a planned kind
never struck while an attempt was under way, so that nothing is known. `python -m tests.chaos.checker FOLDER` judges a
run that was kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.history import ENDED, URGENT, History, Row, read_history
from tests.chaos.invariants import INVARIANTS
from tests.chaos.invariants.witness import overlaps

HIT_SHARE = 0.95
_SHOWN = 20
#: in a run of so many jobs some give their place to others
_MANY_JOBS = 1000


@dataclass
class Verdict:
    """`violations` by invariant; empty lists where it holds. `doubts`: why a run without violations says nothing."""

    violations: dict[str, list[str]]
    doubts: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def word(self) -> str:
        if any(self.violations.values()):
            return "fail"
        return "unknown" if self.doubts else "pass"

    def as_dict(self) -> dict[str, Any]:
        """What stands in chaos-results.json."""
        invariants = {
            name: {"holds": not found, "violations": len(found), "first": found[:_SHOWN]}
            for name, found in self.violations.items()
        }
        return {**self.facts, "invariants": invariants, "doubts": self.doubts, "verdict": self.word}


def judge(history: History) -> Verdict:
    """Evaluate every invariant over one run."""
    violations = {name: list(invariant(history)) for name, invariant in INVARIANTS.items()}
    return Verdict(violations, list(_doubts(history)), _facts(history))


def _doubts(history: History) -> Iterator[str]:
    planned, hit = len(history.run["planned"]), [line for line in history.faults if line["hit"]]
    if len(hit) < HIT_SHARE * planned:
        yield f"{len(hit)} of {planned} planned faults struck, which is less than {HIT_SHARE:.0%}"
    if not history.jobs:
        yield "no job was recorded"
    struck = {line["kind"] for line in hit if _while_running(history, line["began_at"], line["at"])}
    for kind in sorted({one["kind"] for one in history.run["planned"]} - struck):
        yield f"{kind} never struck while an attempt was under way"
    if len(history.jobs) >= _MANY_JOBS and len(_moved(history)) == len(history.asked_to_leave):
        yield "nobody gave its place to a more urgent job"


def _while_running(history: History, began_at: float, ended_at: float) -> bool:
    return any(
        attempt["assigned_at"] <= ended_at and (attempt["ended_at"] is None or attempt["ended_at"] >= began_at)
        for attempts in history.attempts.values()
        for attempt in attempts
    )


def _moved(history: History) -> list[Row]:
    """Of those that were asked to leave, who was not for a more urgent job."""
    return [row for row in history.asked_to_leave if history.kind(row["claimant"]) not in URGENT]


def _facts(history: History) -> dict[str, Any]:
    accepted = {line["value"] for line in history.ops("submit", "ok")}
    lost = [id for id in accepted if id not in history.jobs or history.jobs[id]["state"] not in ENDED]
    doubled = [
        job_id
        for job_id in history.jobs
        if sum(row["state"] == "completed" for row in history.attempts.get(job_id, [])) > 1
        or sum(event["to_state"] in ENDED for event in history.events.get(job_id, [])) > 1
    ]
    found = list(overlaps(history))
    return {
        "seed": history.run.get("seed"),
        "jobs": len(history.jobs),
        "accepted": len(accepted),
        "attempts": sum(map(len, history.attempts.values())),
        "gang_attempts": len(history.members),
        "asked_to_leave": len(history.asked_to_leave),
        "of_them_moved": len(_moved(history)),
        "faults_planned": len(history.run["planned"]),
        "faults_hit": sum(line["hit"] for line in history.faults),
        "kinds": len({line["kind"] for line in history.faults if line["hit"]}),
        "unavailable": history.run.get("unavailable", {}),
        "lost": len(lost),
        "doubled": len(doubled),
        "attempts_that_ran_on_after_being_replaced": len({(one.job_id, one.before) for one in found}),
        "longest_such_overlap_seconds": round(max((one.seconds for one in found), default=0.0), 3),
        "seconds": round(history.run.get("ended_at", 0.0) - history.run.get("began_at", 0.0), 1),
        "settle_seconds": round(history.run.get("settle_took_seconds", 0.0), 1),
    }


def describe(verdict: Verdict) -> str:
    """For people."""
    lines = [f"{name}: {value}" for name, value in verdict.facts.items()]
    for name, found in verdict.violations.items():
        lines.append(f"{'holds' if not found else f'{len(found)} violations':>14}  {name}")
        lines += [f"{'':>16}{text}" for text in found[:_SHOWN]]
    lines += [f"doubt: {doubt}" for doubt in verdict.doubts]
    return "\n".join([*lines, f"verdict: {verdict.word}"])


if __name__ == "__main__":
    print(describe(judge(read_history(Path(sys.argv[1])))))
