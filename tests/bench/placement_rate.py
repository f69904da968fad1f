"""How many jobs a second pure placement places, with many nodes and many waiting jobs of few kinds.

The cluster starts empty and fills up; then it is full, and nodes free up in random order, one job at a time.
"""

from __future__ import annotations

import gc
import random
import sys
import time
import uuid
from statistics import median

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.placement import Placer
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.bench.declared_nodes import declared


def measure(rounds: int = 3, seconds: float = 4.0) -> tuple[float, float]:
    """Placements a second with 10,000 nodes and 1,000,000 waiting jobs, and with a hundredth of each; 50 shapes.

    Seconds of processor time: pure computing in one thread, which other programs should not disturb. They do, through
    the caches, so the two take turns, and each figure is a median.
    """
    large, small = [], []
    for _ in range(rounds):
        large.append(measure_both(10_000, 1_000_000, 50, seconds)[2])
        small.append(measure_both(100, 10_000, 50, seconds)[2])
    return median(large), median(small)


def measure_owners(rounds: int = 3, seconds: float = 4.0) -> float:
    """The same with 10,000 nodes and 1,000,000 waiting jobs of 20 owners, each with all 50 shapes."""
    return median(measure_both(10_000, 1_000_000, 50, seconds, owners=20)[2] for _ in range(rounds))


def measure_both(nodes: int, waiting: int, shapes: int, seconds: float, owners: int = 1) -> tuple[float, float, float]:
    """Placements a second (while the cluster fills up, while it is full), and over both together.

    With several owners, each has jobs of all shapes.
    """
    gc.unfreeze()
    chance = random.Random(7)
    cluster = make_cluster(nodes, chance)
    kinds = make_shapes(shapes)
    backlog = Backlog()
    for number in range(waiting):
        resources, priority = kinds[chance.randrange(shapes)]
        id, owner = str(uuid.UUID(int=chance.getrandbits(128))), f"owner-{number % owners}"
        backlog.add(Waiting(id, number, resources, priority, owner))
    backlog.settle(0.0, cluster.totals)
    placer = Placer(cluster, backlog)
    # What a scheduler can do once it has read the record: else each full collection walks through all of this again.
    gc.collect()
    gc.freeze()
    filled, fill_seconds = _fill(placer, seconds / 2)
    running = filled.copy()
    while more := placer.place(500):
        running += [placement.job_id for placement in more]
    turned, turn_seconds = _turn_over(placer, running, seconds / 2, chance)
    both = (len(filled) + turned) / (fill_seconds + turn_seconds)
    return len(filled) / fill_seconds, turned / turn_seconds if turned else 0.0, both


def make_cluster(nodes: int, chance: random.Random) -> Cluster:
    """Nodes with five kinds of GPUs or none."""
    cluster = Cluster()
    for number, (node_id, capability) in enumerate(declared(nodes, chance)):
        cluster.upsert_node(
            node_id, f"node-{number}", capability, "1", reputation=chance.random(), uptime=chance.random()
        )
    return cluster


def make_shapes(count: int) -> list[tuple[Resources, Priority]]:
    """Distinct requirements, of which every node can serve some."""
    found = []
    for number in range(count):
        wishes: dict[int, dict[str, object]] = {
            0: {},
            1: {"gpus": 1, "gpu_memory": "12GB.."},
            2: {"gpu_memory": "6GB", "shared": True},
            3: {"gpu_memory": "40GB..80GB", "compute_capability": ">=8.0"},
            4: {"gpus": 2, "gpu_model": "RTX 4090|A100*"},
            5: {"gpus": 4, "gpu_memory": "16GB"},
        }
        wish = wishes[number % 6] | {"cpus": 1 + number // 6}
        priority = (Priority.NORMAL, Priority.NORMAL, Priority.HIGH, Priority.LOW)[number // 6 % 4]
        found.append((Resources.parse(wish), priority))
    return found


def _fill(placer: Placer, seconds: float) -> tuple[list[str], float]:
    placed: list[str] = []
    started = time.thread_time()
    while time.thread_time() - started < seconds:
        found = placer.place(500)
        placed += [placement.job_id for placement in found]
        if len(found) < 500:
            break
    return placed, time.thread_time() - started


def _turn_over(placer: Placer, running: list[str], seconds: float, chance: random.Random) -> tuple[int, float]:
    """One job ends, whoever fits takes its place: one call of `place` for each."""
    running = running.copy()
    turned = 0
    started = time.thread_time()
    while time.thread_time() - started < seconds and running:
        at = chance.randrange(len(running))
        placer.cluster.release(running[at])
        placer.backlog.discharge(running[at])
        running[at] = running[-1]
        running.pop()
        found = placer.place(500)
        running += [placement.job_id for placement in found]
        turned += len(found)
    return turned, time.thread_time() - started


if __name__ == "__main__":
    for arguments in ((100, 10_000, 12), (100, 10_000, 50), (10_000, 1_000_000, 12), (10_000, 1_000_000, 50)):
        for owners in (1, 20):
            rates = measure_both(*arguments, seconds=float(sys.argv[1]) if len(sys.argv) > 1 else 6, owners=owners)
            print(arguments, owners, rates)
