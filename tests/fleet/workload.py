"""What comes to a simulated fleet: jobs by the moment of their arrival, made up out of a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority

#: GPUs of a job, and how often: most are small, as in the published traces of Microsoft and Alibaba
_GPUS = ((1, 70), (2, 12), (4, 10), (8, 8))
_PRIORITIES = ((Priority.LOW, 15), (Priority.NORMAL, 75), (Priority.HIGH, 8), (Priority.CRITICAL, 2))
#: seconds: half of all jobs take less than this, and a few take very long
_MEDIAN_SECONDS, _SIGMA, _LONGEST_SECONDS = 1200.0, 1.4, 2 * 86_400.0


@dataclass(frozen=True, slots=True)
class Job:
    """`arrival` and `seconds`, what it takes on its GPUs, count from the beginning of the simulation."""

    id: str
    arrival: float
    seconds: float
    gpus: int
    owner: str = ""
    priority: Priority = Priority.NORMAL
    #: what its submitter said it would take at most, seconds
    time_limit: float | None = None

    @property
    def resources(self) -> Resources:
        return Resources(gpus=self.gpus)


def synthetic(seed: int, jobs: int, gpus: int, load: float = 0.95, owners: int = 8) -> list[Job]:
    """Jobs that would keep `load` of a fleet's `gpus` busy. The first owner sends half of all, and in bursts."""
    chance = random.Random(seed)
    drawn = [
        (
            min(chance.lognormvariate(0, _SIGMA) * _MEDIAN_SECONDS, _LONGEST_SECONDS),
            _draw(chance, _GPUS),
            _draw(chance, _PRIORITIES),
        )
        for _ in range(jobs)
    ]
    span = sum(seconds * count for seconds, count, _ in drawn) / (gpus * load)
    made, burst = [], chance.uniform(0, span)
    for number, (seconds, count, priority) in enumerate(drawn):
        if chance.random() < 0.5:
            owner = "owner-0"
            if chance.random() < 0.05:
                burst = chance.uniform(0, span)
            arrival = min(span, burst + chance.uniform(0, 60))
        else:
            owner, arrival = f"owner-{chance.randrange(1, owners)}", chance.uniform(0, span)
        made.append(Job(f"job-{number}", arrival, seconds, count, owner, priority))
    return sorted(made, key=lambda job: job.arrival)


def with_time_limits(jobs: Sequence[Job], seed: int, without: float = 0.0) -> list[Job]:
    """The same jobs with time limits as people give them, one to five times what the job takes (the f-model of
    Mu'alem and Feitelson 2001); a share of them is `without`.
    """
    chance = random.Random(f"time limits {seed}")
    limits = [(chance.random() < without, chance.uniform(1, 5)) for _ in jobs]
    return [
        job if none else replace(job, time_limit=max(60.0, factor * job.seconds))
        for job, (none, factor) in zip(jobs, limits, strict=True)
    ]


def _draw(chance: random.Random, choices: tuple[tuple[object, int], ...]) -> object:
    values, weights = zip(*choices, strict=True)
    return chance.choices(values, weights)[0]
