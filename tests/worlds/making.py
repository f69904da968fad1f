"""What a world consists of, drawn from its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from broker.scheduler.backlog import Waiting, coarse
from broker.scheduler.quotas import Quota
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.unit.fleet import A100, RTX_3090, RTX_4090, T4, capability

_CARDS = (T4, RTX_3090, RTX_4090, A100)
_REGIONS = (None, "eu-west", "us-east")
PROJECTS = ("", "x", "y")


@dataclass(frozen=True)
class Job:
    waiting: Waiting
    arrives: float
    #: what it takes, at most its time limit
    seconds: float


@dataclass(frozen=True)
class Plan:
    nodes: dict[str, Capability]
    jobs: tuple[Job, ...]
    quotas: dict[str, Quota]
    #: by node, when it is lost
    losses: dict[str, float]
    reserve_after_seconds: float


def make(seed: int) -> Plan:
    chance = random.Random(seed)
    nodes = {f"n{at}": _node(chance) for at in range(chance.randint(1, 5))}
    jobs = tuple(_job(chance, number) for number in range(chance.randint(4, 28)))
    gpus = sum(len(node.gpus) for node in nodes.values())
    quotas = {project: _quota(chance, gpus) for project in "xy"} if chance.random() < 0.4 else {}
    losses = {name: chance.uniform(0, 3000) for name in nodes if chance.random() < 0.05}
    return Plan(nodes, jobs, quotas, losses, chance.choice((0.0, 30.0, 600.0)))


def _node(chance: random.Random) -> Capability:
    kind = chance.choice(_CARDS)
    cards = [kind if chance.random() < 0.9 else chance.choice(_CARDS) for _ in range(chance.choice((0, 1, 2, 4, 4)))]
    return capability(
        *cards,
        slots=chance.choice((1, 2, 4, 8)),
        cpus=chance.randint(1, 8),
        ram=chance.choice(("8GB", "32GB", "64GB")),
        region=chance.choice(_REGIONS),
        accept=chance.choice((None, None, None, None, 'owner != "bob"', 'gpus > 0 or project == "x"')),
    )


def _job(chance: random.Random, number: int) -> Job:
    limit = coarse(chance.lognormvariate(6, 1)) if chance.random() < 0.7 else None
    seconds = chance.uniform(0.2, 1.0) * (limit if limit is not None else 900.0)
    priority = chance.choices(list(Priority), (2, 7, 2, 1))[0]
    waiting = Waiting(
        f"job-{number}",
        number,
        Resources.parse(_wish(chance)),
        priority,
        chance.choice(("ann", "bob", "cem")),
        chance.choice(PROJECTS),
        limit,
    )
    return Job(waiting, chance.uniform(0, 3000), seconds)


def _wish(chance: random.Random) -> dict[str, Any]:
    draw = chance.random()
    wish: dict[str, Any]
    if draw < 0.2:
        wish = {"cpus": chance.randint(0, 6), "ram": chance.choice(("1GB", "6GB", "24GB"))}
    elif draw < 0.35:
        wish = {"gpu_memory": chance.choice(("6GB", "10GB", "20GB")), "shared": True, "gpus": chance.choice((1, 1, 2))}
    else:
        wish = {"gpus": chance.choice((1, 1, 1, 2, 2, 4)), "cpus": chance.choice((0, 0, 1, 2))}
        if chance.random() < 0.3:
            wish |= chance.choice(({"gpu_memory": "16GB"}, {"gpu_model": "RTX*|A100"}, {"compute_capability": ">=8.0"}))
        if chance.random() < 0.2:
            wish |= {"nodes": chance.choice((2, 2, 3)), "gpus": chance.choice((1, 1, 2))}
    if chance.random() < 0.1:
        wish |= chance.choice(({"region": "eu*"}, {"exclude_nodes": ["n0"]}, {"node": "n0|n1|n2"}))
    if chance.random() < 0.2:
        wish |= {"placement": chance.choice(("spread", "pack"))}
    return wish


def _quota(chance: random.Random, gpus: int) -> Quota:
    own = chance.randint(0, max(1, gpus // 2))
    return Quota(gpus=own, lend_gpus=chance.choice((None, 0, 1)), borrow_gpus=chance.choice((None, None, 0, 2)))
