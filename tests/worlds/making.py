"""What a world consists of, drawn from its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from broker.scheduler.backlog import Waiting, coarse
from broker.scheduler.quotas import Quota
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.settings import Settings
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
    #: of work between two of its checkpoints; None: it writes none, and begins anew wherever it is placed again
    saves_every_seconds: float | None
    #: when its submitter does not want it any more; None: he does
    cancelled: float | None


@dataclass(frozen=True)
class Plan:
    nodes: dict[str, Capability]
    jobs: tuple[Job, ...]
    quotas: dict[str, Quota]
    #: by node, when it is lost
    losses: dict[str, float]
    settings: Settings
    #: the scheduler's duties come up to so much later than what they are about
    lag_seconds: float


def make(seed: int) -> Plan:
    chance = random.Random(seed)
    # What checkpoints are found by: one store, or here and there a folder that two nodes share.
    places = chance.choice((("store",), ("store",), ("folder", "folder", "other", None)))
    nodes = {f"n{at}": _node(chance, chance.choice(places)) for at in range(chance.randint(1, 5))}
    busy_seconds = chance.choice((600.0, 3000.0))
    # Small jobs that write checkpoints, all over the nodes, and bigger ones for which they may have to move.
    is_scattered = chance.random() < 0.25
    jobs = tuple(_job(chance, number, busy_seconds, is_scattered) for number in range(chance.randint(4, 28)))
    gpus = sum(len(node.gpus) for node in nodes.values())
    quotas = {project: _quota(chance, gpus) for project in "xy"} if chance.random() < 0.4 else {}
    losses = {name: chance.uniform(0, 3000) for name in nodes if chance.random() < 0.05}
    return Plan(nodes, jobs, quotas, losses, _settings(chance), chance.choice((0.0, 0.0, 1.0, 5.0)))


def _settings(chance: random.Random) -> Settings:
    return Settings.model_construct(
        reserve_after_seconds=chance.choice((0.0, 30.0, 600.0)),
        preempt_from=chance.choice(("critical", "critical", "high", "never")),
        preempt_limit=chance.choice((1, 3)),
        preempt_grace_seconds=chance.choice((1.0, 20.0, 200.0)),
        consolidate_limit=chance.choice((0, 1, 2, 2)),
        quota_preemptions=chance.choice((1, 3)),
    )


def _node(chance: random.Random, checkpoint_place: str | None) -> Capability:
    kind = chance.choice(_CARDS)
    cards = [kind if chance.random() < 0.9 else chance.choice(_CARDS) for _ in range(chance.choice((0, 1, 2, 4, 4)))]
    return capability(
        *cards,
        slots=chance.choice((1, 2, 4, 8)),
        cpus=chance.randint(1, 8),
        ram=chance.choice(("8GB", "32GB", "64GB")),
        region=chance.choice(_REGIONS),
        checkpoint_place=checkpoint_place,
        accept=chance.choice((None, None, None, None, 'owner != "bob"', 'gpus > 0 or project == "x"')),
    )


def _job(chance: random.Random, number: int, busy_seconds: float, is_scattered: bool) -> Job:
    limit = coarse(chance.lognormvariate(6, 1)) if chance.random() < (0.2 if is_scattered else 0.7) else None
    seconds = chance.uniform(0.2, 1.0) * (limit if limit is not None else 900.0)
    priority = chance.choices(list(Priority), (2, 7, 2, 2))[0]
    waiting = Waiting(
        f"job-{number}",
        number,
        Resources.parse({"gpus": chance.choice((1, 1, 1, 2, 4))} if is_scattered else _wish(chance)),
        priority,
        chance.choice(("ann", "bob", "cem")),
        chance.choice(PROJECTS),
        limit,
    )
    arrives = chance.uniform(0, busy_seconds)
    saves = seconds * chance.uniform(0.05, 0.6) if is_scattered or chance.random() < 0.6 else None
    cancelled = arrives + chance.uniform(0, 1000) if chance.random() < 0.05 else None
    return Job(waiting, arrives, seconds, saves, cancelled)


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
