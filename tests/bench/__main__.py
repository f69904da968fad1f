"""`make bench`: every figure against its yardstick, in one run. Prints a table and writes bench-results.json."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
from rich.console import Console
from rich.table import Table

from tests.bench import (
    assign_latency,
    beats,
    end_to_end_placement,
    gpu_start,
    placement_rate,
    start_latency,
    start_up,
    submission_rate,
    training_rate,
)
from tests.bench.bench_stack import bare_celery_worker, bench_stack
from tests.bench.row import Row
from tests.real_gpu import has_gpu

RESULTS = Path("bench-results.json")


def start_row() -> Iterator[Row]:
    # Celery's worker imports its tasks before any is sent, so a node that does so is what it is held against.
    for preload in (("--preload", "clock_job"), ()):
        stack = bench_stack("--slots", "2", "--only", "postgres,redis,scheduler,worker", *preload)
        with stack as client, bare_celery_worker(client.broker_url):
            yield start_latency.measure(client, preloaded=bool(preload))


def submission_row() -> Iterator[Row]:
    with bench_stack("--only", "postgres,redis,scheduler,worker") as client:
        yield submission_rate.measure(client)


def end_to_end_row() -> Iterator[Row]:
    with bench_stack("--only", "postgres,redis,scheduler,worker") as client:
        yield end_to_end_placement.measure(client)


def pure_rows() -> Iterator[Row]:
    large, small = placement_rate.measure()
    yield Row("pure_placement_per_second", large, "jobs/s", target=20_000, note="10,000 nodes, 1,000,000 waiting")
    yield Row(
        "pure_placement_at_scale",
        large,
        "jobs/s",
        target=0.67,
        yardstick=small,
        note="yardstick: 100 nodes, 10,000 waiting",
    )
    shared = placement_rate.measure_owners()
    yield Row("pure_placement_of_20_owners", shared, "jobs/s", target=20_000, note="the same, 1,000 kinds of work")


def training_row() -> Iterator[Row]:
    with bench_stack("--only", "postgres,redis,scheduler,worker") as client:
        yield training_rate.measure(client)


def gpu_row() -> Iterator[Row]:
    if not has_gpu():
        return
    with bench_stack("--only", "postgres,redis,scheduler,worker") as client:
        yield gpu_start.measure(client)


BENCHES: dict[str, Callable[[], Iterator[Row]]] = {
    "start": start_row,
    "submissions": submission_row,
    "end_to_end": end_to_end_row,
    "placement": pure_rows,
    "startup": start_up.measure,
    "beats": beats.measure,
    "assigned": assign_latency.measure,
    "training": training_row,
    "gpu_start": gpu_row,
}


@click.command()
@click.option("--only", type=click.Choice(list(BENCHES)), help="One group of rows.")
def main(only: str | None) -> None:
    console = Console()
    rows: list[Row] = []
    for name, bench in BENCHES.items():
        if only in (None, name):
            console.print(f"measuring {name} ...", style="dim")
            rows.extend(bench())
    console.print(table(rows))
    RESULTS.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
    console.print(f"written to {RESULTS}", style="dim")
    raise SystemExit(not all(row.holds for row in rows))


def table(rows: list[Row]) -> Table:
    made = Table(title=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}")
    for column in ("what", "value", "yardstick", "ratio", "to hold", "holds", "note"):
        made.add_column(column, justify="left" if column in ("what", "note") else "right")
    for row in rows:
        sign = "<=" if row.lower_is_better else ">="
        made.add_row(
            row.name,
            f"{row.value:,.1f} {row.unit}",
            "-" if row.yardstick is None else f"{row.yardstick:,.1f}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            f"{sign} {row.target:g}",
            "[green]yes" if row.holds else "[red]no",
            row.note,
        )
    return made


if __name__ == "__main__":
    main()
