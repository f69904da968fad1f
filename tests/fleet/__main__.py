"""`python -m tests.fleet`: the same jobs under our policy, strict FIFO, and best fit without fairness."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cyxwiz_tasks.resources import PlacementPolicy
from tests.fleet.measures import Report, middle
from tests.fleet.policies import BestFit, Fifo, Ours
from tests.fleet.simulate import Simulation, make_fleet
from tests.fleet.traces import read
from tests.fleet.workload import Job, synthetic, with_time_limits

#: what is compared: ours as it is by default, and packed; the others packed, which is what is best for them
POLICIES: dict[str, tuple[type[Ours], PlacementPolicy]] = {
    "ours": (Ours, "balanced"),
    "ours, packed": (Ours, "pack"),
    "FIFO": (Fifo, "pack"),
    "best fit": (BestFit, "pack"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--nodes", type=int, default=16, help="half with eight GPUs, half with four")
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--seeds", type=int, default=5, help="so many workloads, of which medians are told")
    parser.add_argument("--load", type=float, default=0.95, help="of a synthetic workload: GPU time asked for")
    parser.add_argument("--unlimited", type=float, default=0.0, help="share of the jobs that have no time limit, 0..1")
    parser.add_argument("--trace", type=Path, help="pai_task_table.csv (Alibaba), cluster_job_log or a CSV (Philly)")
    parser.add_argument("--plots", type=Path, help="a folder for PNG files; needs matplotlib")
    given = parser.parse_args()
    workloads = _workloads(given)
    print(f"{len(workloads)} workloads of {len(workloads[0])} jobs, {given.nodes} nodes, simulated")
    reports: dict[str, Report] = {}
    for name, (kind, placement) in POLICIES.items():
        began = time.perf_counter()
        reports[name] = middle([compare(jobs, given.nodes, kind, placement) for jobs in workloads])
        print(f"  {name}: {time.perf_counter() - began:.1f} s", flush=True)
    print(table(reports))
    if given.plots is not None:
        from tests.fleet.plots import draw

        print("\n".join(str(path) for path in draw(reports, given.plots)))
    return 0


def _workloads(given: argparse.Namespace) -> list[list[Job]]:
    """A trace is one; its jobs get time limits, too, since the traces tell none."""
    _, gpus = make_fleet(given.nodes)
    made: list[list[Job]] = []
    for seed in range(given.seed, given.seed + (1 if given.trace else given.seeds)):
        jobs = read(given.trace, given.jobs) if given.trace else synthetic(seed, given.jobs, gpus, given.load)
        made.append(with_time_limits(jobs, seed, given.unlimited))
    return made


def compare(jobs: Sequence[Job], nodes: int, kind: type[Ours], placement: PlacementPolicy) -> Report:
    """One policy's report on these jobs."""
    cluster, gpus = make_fleet(nodes, placement)
    return Simulation(jobs, kind(cluster), gpus).run()


def table(reports: dict[str, Report]) -> str:
    """A line for each figure, a column for each policy; waits are median / 95th percentile, in minutes."""
    rows = [("", *reports)]
    for title in ("utilisation", "goodput", "fairness"):
        rows.append((title, *(f"{getattr(report, title):.3f}" for report in reports.values())))
    for title in ("preemptions", "moves", "promised", "outranked", "broken_promises"):
        rows.append((title, *(str(getattr(report, title)) for report in reports.values())))
    longest = (f"{report.longest_after_promise_seconds / 3600:.1f}" for report in reports.values())
    rows.append(("longest wait, h", *longest))
    rows.append(("makespan, h", *(f"{report.makespan_seconds / 3600:.1f}" for report in reports.values())))
    for name in next(iter(reports.values())).waits:
        waits = (report.waits[name] for report in reports.values())
        rows.append((f"wait {name}, min", *(f"{low / 60:.1f} / {high / 60:.0f}" for low, high in waits)))
    return "\n".join("  ".join(f"{word:<18}" for word in row).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
