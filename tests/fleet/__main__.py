"""`python -m tests.fleet`: the same jobs under our policy, strict FIFO, and best fit without fairness."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cyxwiz_tasks.resources import PlacementPolicy
from tests.fleet.measures import Report
from tests.fleet.policies import BestFit, Fifo, Ours
from tests.fleet.simulate import Simulation, make_fleet
from tests.fleet.traces import read
from tests.fleet.workload import Job, synthetic

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
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.95, help="of a synthetic workload: GPU time asked for")
    parser.add_argument("--trace", type=Path, help="pai_task_table.csv (Alibaba) or cluster_job_log (Philly)")
    parser.add_argument("--plots", type=Path, help="a folder for PNG files; needs matplotlib")
    given = parser.parse_args()
    _, gpus = make_fleet(given.nodes)
    jobs = read(given.trace, given.jobs) if given.trace else synthetic(given.seed, given.jobs, gpus, given.load)
    print(f"{len(jobs)} jobs of {len({job.owner for job in jobs})} owners, {given.nodes} nodes, {gpus} GPUs, simulated")
    reports: dict[str, Report] = {}
    for name, (kind, placement) in POLICIES.items():
        began = time.perf_counter()
        reports[name] = compare(jobs, given.nodes, kind, placement)
        print(f"  {name}: {time.perf_counter() - began:.1f} s")
    print(table(reports))
    if given.plots is not None:
        from tests.fleet.plots import draw

        print("\n".join(str(path) for path in draw(reports, given.plots)))
    return 0


def compare(jobs: Sequence[Job], nodes: int, kind: type[Ours], placement: PlacementPolicy) -> Report:
    """One policy's report on these jobs."""
    cluster, gpus = make_fleet(nodes, placement)
    return Simulation(jobs, kind(cluster), gpus).run()


def table(reports: dict[str, Report]) -> str:
    """A line for each figure, a column for each policy; waits are median / 95th percentile, in minutes."""
    rows = [("", *reports)]
    for title in ("utilisation", "goodput", "fairness"):
        rows.append((title, *(f"{getattr(report, title):.3f}" for report in reports.values())))
    rows.append(("preemptions", *(str(report.preemptions) for report in reports.values())))
    rows.append(("makespan, h", *(f"{report.makespan_seconds / 3600:.1f}" for report in reports.values())))
    for name in next(iter(reports.values())).waits:
        waits = (report.waits[name] for report in reports.values())
        rows.append((f"wait {name}, min", *(f"{low / 60:.1f} / {high / 60:.0f}" for low, high in waits)))
    return "\n".join("  ".join(f"{word:<18}" for word in row).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
