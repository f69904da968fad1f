"""What a run is judged by. Pure arithmetic, on times in seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.fleet.workload import Job


@dataclass
class Run:
    """One job's life: when it first had a place, when it ended, how long it held GPUs, and how often it lost them."""

    job: Job
    started: float | None = None
    ended: float | None = None
    held_seconds: float = 0.0
    preempted: int = 0
    #: of these, so that a bigger job got its place
    moved: int = 0


@dataclass(frozen=True)
class Report:
    #: of all GPU time until the last arrival: held by jobs; and spent on work that counted in the end
    utilisation: float
    goodput: float
    preemptions: int
    #: of these, so that a bigger job got its place
    moves: int
    #: Jain's index over owners of how quickly their jobs get through, 1: all alike
    fairness: float
    #: by class: median and 95th percentile of the wait for the first place, seconds
    waits: dict[str, tuple[float, float]]
    makespan_seconds: float
    #: jobs with a reservation whose beginning was known; of them, those that started later than it said first, because
    #: somebody more urgent took the place, and without; and the longest wait of a big one from its reservation on
    promised: int = 0
    outranked: int = 0
    broken_promises: int = 0
    longest_after_promise_seconds: float = 0.0


def judge(runs: Sequence[Run], gpus: int, busy_gpu_seconds: float, useful_gpu_seconds: float, until: float) -> Report:
    """`busy_gpu_seconds` and `useful_gpu_seconds` are those of the time up to `until`."""
    waits: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run.started is not None:
            for name in classes(run.job):
                waits[name].append(run.started - run.job.arrival)
    return Report(
        utilisation=busy_gpu_seconds / (gpus * until),
        goodput=useful_gpu_seconds / (gpus * until),
        preemptions=sum(run.preempted for run in runs),
        moves=sum(run.moved for run in runs),
        fairness=jain(speeds(runs).values()),
        waits={name: (median(found), percentile(found, 0.95)) for name, found in sorted(waits.items())},
        makespan_seconds=max((run.ended or 0.0 for run in runs), default=0.0),
    )


def middle(reports: Sequence[Report]) -> Report:
    """The median of each figure; of promises their sum, and of waits for them the longest."""

    def of(name: str) -> float:
        return median(getattr(report, name) for report in reports)

    def total(name: str) -> int:
        return sum(getattr(report, name) for report in reports)

    named = {name for report in reports for name in report.waits}
    waits = {name: [report.waits[name] for report in reports if name in report.waits] for name in sorted(named)}
    return Report(
        utilisation=of("utilisation"),
        goodput=of("goodput"),
        preemptions=round(of("preemptions")),
        moves=round(of("moves")),
        fairness=of("fairness"),
        waits={
            name: (median(low for low, _ in all_), median(high for _, high in all_)) for name, all_ in waits.items()
        },
        makespan_seconds=of("makespan_seconds"),
        promised=total("promised"),
        outranked=total("outranked"),
        broken_promises=total("broken_promises"),
        longest_after_promise_seconds=max(report.longest_after_promise_seconds for report in reports),
    )


def classes(job: Job) -> tuple[str, str]:
    """The classes by which waits are told: how big, and how urgent."""
    return ("1 GPU" if job.gpus == 1 else "2-4 GPUs" if job.gpus <= 4 else "5-8 GPUs"), str(job.priority)


def speeds(runs: Iterable[Run]) -> dict[str, float]:
    """By owner: of the time that his jobs spent in the system, the share in which they would have been done alone."""
    alone: dict[str, float] = defaultdict(float)
    there: dict[str, float] = defaultdict(float)
    for run in runs:
        if run.ended is not None:
            alone[run.job.owner] += run.job.seconds
            there[run.job.owner] += run.ended - run.job.arrival
    return {owner: alone[owner] / there[owner] for owner in alone}


def jain(values: Iterable[float]) -> float:
    """Jain's fairness index, (sum x)^2 / (n sum x^2): 1 if all are equal, 1/n if one has everything."""
    found = list(values)
    squares = sum(value * value for value in found)
    return sum(found) ** 2 / (len(found) * squares) if squares else 1.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)
    return ordered[max(0, int(rank) - 1)]
