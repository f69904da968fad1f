"""What jobs themselves wrote outside the system, against what the record says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from tests.chaos.history import History, Row

#: how many steps a job of each kind makes
_STEPS = {"noop": 1, "walk": 20, "gpu": 20, "wide": 20, "urgent": 20, "keyed": 20, "children": 5, "chain": 1}
#: of those that save as they go
SAVES_STEPS = 40


def overlap_only_of_lost(history: History) -> Iterator[str]:
    """A node that was given up may run on for a while, unheard; nobody else may."""
    for job_id, rank, before, after, seconds in overlaps(history):
        attempt = next((row for row in history.attempts.get(job_id, []) if row["number"] == before), None)
        if attempt is None:
            yield f"job {job_id}: attempt {before} made steps and is not in the record"
        elif not history.given_up(attempt, rank):
            yield (
                f"job {job_id}: attempt {before} is {attempt['state']} and made a step (rank {rank}) {seconds:.3f} s "
                f"after attempt {after} had begun"
            )


class Overlap(NamedTuple):
    """Two attempts that follow each other, and how long a process of the first went on after the second had begun."""

    job_id: str
    rank: int
    before: int
    after: int
    seconds: float


def overlaps(history: History) -> Iterator[Overlap]:
    """Every process that made a step after any process of the next attempt had made one."""
    numbers: dict[str, list[int]] = {}
    for job_id, number in sorted(history.steps):
        numbers.setdefault(job_id, []).append(number)
    for job_id, its in numbers.items():
        for before, after in pairwise(its):
            first = min(step["monotonic"] for step in history.steps[job_id, after])
            for rank, lines in history.steps_by_rank(job_id, before).items():
                last = max(step["monotonic"] for step in lines)
                if last > first:
                    yield Overlap(job_id, rank, before, after, last - first)


def every_step_done(history: History) -> Iterator[str]:
    """Of what is completed, each step was made, and once by the attempt that did it."""
    yield from _every_step_once(history)
    yield from _walked_on_from_its_checkpoint(history)
    yield from _trained_on_from_its_checkpoint(history)


def _every_step_once(history: History) -> Iterator[str]:
    for job_id, job in history.jobs.items():
        submitted = history.submitted.get(job_id)
        steps = _STEPS.get(submitted["kind"]) if submitted else None
        winner = history.winner(job_id)
        if job["state"] != "completed" or steps is None or winner is None:
            continue
        lines = history.steps.get((job_id, winner["number"]), [])
        made = [line["step"] for line in lines if isinstance(line["step"], int)]
        if made != list(range(1, steps + 1)):
            yield f"job {job_id}: attempt {winner['number']} is completed and made the steps {made[:30]} of {steps}"


def _walked_on_from_its_checkpoint(history: History) -> Iterator[str]:
    for job_id, number, lines in _completed(history, "saves"):
        for wrong in goes_on(lines, saved_before(history, job_id, number), SAVES_STEPS):
            yield f"job {job_id}: attempt {number} {wrong}"


def goes_on(lines: list[Row], saved: set[int], steps: int) -> Iterator[str]:
    """What is wrong with an attempt that goes on from one of the `saved` steps, or from none, to the last."""
    first = next((line["restored"] for line in lines if line["step"] == "restored"), 0)
    made = [line["step"] for line in lines if isinstance(line["step"], int)]
    if first not in saved | {0}:
        yield f"went on from step {first}; saved were {sorted(saved)}"
    if made != list(range(first + 1, steps + 1)):
        yield f"went on from step {first} and made the steps {made} of {steps}"


def _trained_on_from_its_checkpoint(history: History) -> Iterator[str]:
    """A training makes each step after the one it goes on from, which an attempt before it saved, up to the last.

    All trainings are alike: whatever was done to them, they end with the same loss.
    """
    losses: Counter[float] = Counter()
    for job_id, number, lines in _completed(history, "train"):
        first, saved = 0, saved_before(history, job_id, number)
        for line in lines:
            if line["step"] == "restored":
                first = line["restored"]
                if first not in saved:
                    yield f"job {job_id}: attempt {number} went on from step {first}; saved were {sorted(saved)}"
        made = [line["step"] for line in lines if isinstance(line["step"], int)]
        ends = [line for line in lines if line["step"] == "trained"]
        if [made] != [list(range(first + 1, end["steps"] + 1)) for end in ends]:
            yield f"job {job_id}: attempt {number} went on from step {first}, made {made[:30]} and ended with {ends}"
        losses.update(end["loss"] for end in ends)
    if len(losses) > 1:
        yield f"trainings that are alike ended with different losses: {dict(losses)}"


def _completed(history: History, kind: str) -> Iterator[tuple[str, int, list[Row]]]:
    """Of each job of a kind that is completed: its id, and number and lines of the attempt that did it."""
    for job_id, job in history.jobs.items():
        winner = history.winner(job_id)
        if job["state"] == "completed" and winner is not None and history.kind(job_id) == kind:
            yield job_id, winner["number"], history.steps.get((job_id, winner["number"]), [])


def saved_before(history: History, job_id: str, number: int) -> set[int]:
    """The steps of checkpoints that attempts before this one began to write."""
    return {
        line["saved"]
        for (other, earlier), lines in history.steps.items()
        if other == job_id and earlier < number
        for line in lines
        if line["step"] == "saving"
    }


def started_once(history: History) -> Iterator[str]:
    for job_id, number in history.steps:
        for rank, lines in history.steps_by_rank(job_id, number).items():
            pids = Counter(line["pid"] for line in lines)
            if len(pids) > 1:
                yield f"job {job_id}: attempt {number}, rank {rank}, ran in {len(pids)} processes: {sorted(pids)}"
