"""`python -m tests.chaos --seed 7`: one long run of faults, judged. Writes chaos-results.json; exits 0 on `pass` alone.

A run that fails, or says nothing, keeps its folder: `python -m tests.chaos.checker FOLDER` judges it again.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.chaos.checker import describe, judge
from tests.chaos.faults import FAULTS
from tests.chaos.history import read_history
from tests.chaos.run import Order, run_chaos

RESULTS = Path("chaos-results.json")


@click.command()
@click.option("--seed", type=int, help="Default: a fresh one.")
@click.option("--jobs", default=2000, show_default=True)
@click.option("--faults", default=200, show_default=True)
@click.option("--seconds", default=660.0, show_default=True, help="How long jobs come in and faults strike.")
@click.option("--only", multiple=True, type=click.Choice(sorted(FAULTS)), help="These kinds of faults alone.")
@click.option("--keep", is_flag=True, help="Keep the run's folder also when it passes.")
def main(seed: int | None, jobs: int, faults: int, seconds: float, only: tuple[str, ...], keep: bool) -> None:
    """Run jobs under faults and judge what is left."""
    order = Order(secrets.randbelow(10**6) if seed is None else seed, jobs, faults, seconds, only=only)
    folder, began = Path(tempfile.mkdtemp(prefix=f"cyxwiz-chaos-{order.seed}-")), time.monotonic()
    click.echo(f"seed {order.seed}, {jobs} jobs, {faults} faults in {seconds:g} s; files in {folder}")
    # As Ctrl-C: whatever runs is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    run_chaos(order, folder, lambda text: click.echo(f"{time.monotonic() - began:6.1f}  {text}"))
    verdict = judge(read_history(folder))
    RESULTS.write_text(json.dumps(verdict.as_dict(), indent=2) + "\n")
    click.echo(describe(verdict))
    if verdict.word == "pass" and not keep:
        shutil.rmtree(folder)
    sys.exit(verdict.word != "pass")


if __name__ == "__main__":
    main()
