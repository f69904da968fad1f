"""Would anybody notice? Seeds one bug at a time into a copy of the source, and shows what catches it.

`python -m tests.chaos.mutations` (or `--only NAME`) prints a table and exits 0 if every one is caught: by a test that
fails and, where the bug names one, by a short chaos run whose verdict is `fail` within three seeds. Each catcher passes
on the copy without a bug first, or its word would mean nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.chaos.mutation_list import MUTATIONS, Chaos, Mutation, Tests

ROOT = Path(__file__).parents[2]
RESULTS = Path("mutations-results.json")
_SEEDS = (101, 102, 103)
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Found:
    """`caught_by`: the words of who noticed; None if one of the catchers did not."""

    name: str
    caught_by: str | None
    seconds: float


def copy_of_source(folder: Path) -> Path:
    """The files that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return folder


def seeded(source: str, mutation: Mutation, file: str) -> str:
    """The text of one file with the bug in it. Raises ValueError if the place is not there exactly once."""
    for name, old, new in mutation.edits:
        if name == file:
            if source.count(old) != 1:
                raise ValueError(f"{mutation.name}: {file} holds {source.count(old)} times: {old!r}")
            source = source.replace(old, new)
    return source


def run_catcher(catcher: Tests | Chaos, copy: Path) -> str | None:
    """Who noticed something in this copy; None if nobody did. Raises RuntimeError for a catcher that cannot be run."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    if isinstance(catcher, Tests):
        return _run_tests(catcher, copy, environment)
    return _run_chaos(catcher, copy, environment)


def _run_tests(catcher: Tests, copy: Path, environment: dict[str, str]) -> str | None:
    done = _run([*catcher.command, "-x", "-q", "--no-header"], copy, environment)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (0, 1) or (done.returncode == 1 and not failed):
        raise RuntimeError(f"{catcher.name} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return failed[0].partition(" - ")[0][:150] if done.returncode == 1 else None


def _run_chaos(catcher: Chaos, copy: Path, environment: dict[str, str]) -> str | None:
    for seed in _SEEDS:
        written = copy / "chaos-results.json"
        written.unlink(missing_ok=True)
        done = _run([*catcher.command, "--seed", str(seed)], copy, environment)
        if not written.exists():
            raise RuntimeError(f"{catcher.name} came to no verdict: {(done.stdout + done.stderr)[-2000:]}")
        results = json.loads(written.read_text())
        if results["verdict"] == "fail":
            broken = [name for name, found in results["invariants"].items() if not found["holds"]]
            return f"chaos, seed {seed}: {'; '.join(broken)}"
    return None


def _run(command: list[str], copy: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )


def hunt(mutation: Mutation, folder: Path) -> Found:
    """Seed one bug and see who notices."""
    copy, began = copy_of_source(folder), time.monotonic()
    for file in {name for name, _, _ in mutation.edits}:
        (copy / file).write_text(seeded((copy / file).read_text(), mutation, file))
    noticed = [run_catcher(catcher, copy) for catcher in mutation.catchers]
    caught_by = None if None in noticed else "; ".join(filter(None, noticed))
    return Found(mutation.name, caught_by, time.monotonic() - began)


def _check_catchers(chosen: list[Mutation], console: Console) -> bool:
    """Whether all of them are silent where there is no bug."""
    silent = True
    for catcher in dict.fromkeys(catcher for mutation in chosen for catcher in mutation.catchers):
        with tempfile.TemporaryDirectory(prefix="cyxwiz-sound-") as folder:
            Path(folder).chmod(0o711)
            noticed = run_catcher(catcher, copy_of_source(Path(folder)))
        console.print(f"without a bug: {catcher.name} {'is silent' if noticed is None else 'says ' + noticed}")
        silent = silent and noticed is None
    return silent


@click.command()
@click.option("--only", multiple=True, type=click.Choice([mutation.name for mutation in MUTATIONS]))
@click.option("--trust-catchers", is_flag=True, help="Do not try them on the source without a bug first.")
def main(only: tuple[str, ...], trust_catchers: bool) -> None:
    """Seed each bug and print who catches it."""
    console = Console(width=160, markup=False)
    chosen = [mutation for mutation in MUTATIONS if not only or mutation.name in only]
    if not trust_catchers and not _check_catchers(chosen, console):
        sys.exit("a catcher finds something in the source as it is: nothing is known of the bugs")
    found = []
    for mutation in chosen:
        with tempfile.TemporaryDirectory(prefix="cyxwiz-mutant-") as folder:
            Path(folder).chmod(0o711)
            found.append(hunt(mutation, Path(folder)))
        console.print(f"{found[-1].name}: {found[-1].caught_by or 'NOT CAUGHT'} ({found[-1].seconds:.0f} s)")
    table = Table("seeded bug", "caught by", "seconds")
    for one in found:
        table.add_row(one.name, one.caught_by or "nobody", f"{one.seconds:.0f}")
    console.print(table)
    RESULTS.write_text(json.dumps([vars(one) for one in found], indent=2) + "\n")
    sys.exit(any(one.caught_by is None for one in found))


if __name__ == "__main__":
    main()
