"""Arrays on the command line: `cyxwiz submit --grid`, and how it shows one."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from cyxwiz_tasks.array_handle import ArrayHandle
from cyxwiz_tasks.cli.options import parse_json, print_json
from cyxwiz_tasks.early_stopping import SuccessiveHalving
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.states import TERMINAL_JOB_STATES, JobState

_LOOK_SECONDS = 1.0


def array_options_of(grid: tuple[str, ...], at_most: int | None, early_stopping: str | None) -> dict[str, Any]:
    """What `Client.map` takes, out of the options of `cyxwiz submit`; empty without a grid. Raises InvalidJob."""
    for name, value in (("at_most", at_most), ("early_stopping", early_stopping)):
        if value is not None and not grid:
            raise InvalidJob(name, "is for an array", "Write --grid learning_rate=0.1,0.01 beside it")
    if not grid:
        return {}
    rule = None if early_stopping is None else SuccessiveHalving.parse(_rule_of(early_stopping))
    return {"parameters": grid_of(grid), "at_most": at_most, "early_stopping": rule}


def _rule_of(text: str) -> dict[str, Any]:
    rule: dict[str, Any] = parse_json("early_stopping", text, dict, '{"metric": "val_accuracy", "rung_epochs": [1, 3]}')
    return rule


def grid_of(texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """A grid out of texts such as `learning_rate=0.1,0.01`; a value is JSON, or else a text. Raises InvalidJob."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, sign, values = text.partition("=")
        if not sign or not name or not values:
            raise InvalidJob("grid", f"{text!r} has no name or no values", "Write --grid learning_rate=0.1,0.01")
        grid.setdefault(name.replace("-", "_"), []).extend(_value(value) for value in values.split(","))
    return grid


def show_array(array: ArrayHandle, *, wanted: bool, as_json: bool) -> int:
    """Say that an array was sent; with `wanted`, wait for its end. The exit status: 1 if a job failed, 130: Ctrl-C."""
    try:
        counts = _follow(array, quiet=as_json) if wanted else None
    except KeyboardInterrupt:
        click.echo(f"\nits jobs go on: cyxwiz jobs --array {array.id}, cyxwiz cancel --array {array.id}", err=True)
        return 130
    if as_json:
        print_json({"array": array.id, "jobs": [job.id for job in array]} | ({"counts": counts} if counts else {}))
    elif counts is None:
        click.echo(f"{array.id}: {len(array)} jobs: cyxwiz jobs --array {array.id}")
    return 1 if counts and counts[JobState.FAILED] else 0


def _follow(array: ArrayHandle, *, quiet: bool) -> dict[str, int]:
    """A line for each change of its counts, until all its jobs have ended."""
    shown = ""
    if not quiet:
        click.echo(f"array {array.id}")
    while True:
        counts = array.counts()
        line = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        if line != shown and not quiet:
            click.echo(line)
        shown = line
        if sum(counts[state] for state in TERMINAL_JOB_STATES) == len(array):
            return counts
        time.sleep(_LOOK_SECONDS)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()
