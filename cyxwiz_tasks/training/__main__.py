"""`python -m cyxwiz_tasks.training --model cnn --dataset digits --epochs 5`: the job's own loop as a plain script."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cyxwiz_tasks.errors import CyxwizError, InvalidJob
from cyxwiz_tasks.runtime.context import LocalContext
from cyxwiz_tasks.training_job import TrainingJob

_JSON_FIELDS = ("model_options", "dataset_options")


def _every_field(command: Callable[..., None]) -> Callable[..., None]:
    for name in reversed(TrainingJob.model_fields):
        command = click.option(f"--{name.replace('_', '-')}", name, metavar="JSON" if name in _JSON_FIELDS else None)(
            command
        )
    return command


@click.command(help=__doc__)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:0.")
@click.option("--threads", default=1, show_default=True)
@click.option(
    "--artifacts", type=click.Path(path_type=Path), help="Where weights and metrics go; a new folder if not given."
)
@_every_field
def main(device: str, threads: int, artifacts: Path | None, **fields: Any) -> None:
    # Must stand before torch is imported: idle OpenMP threads that spin made a step 17 times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from cyxwiz_tasks.training.loop import train

    given = {name: value for name, value in fields.items() if value is not None}
    cache = Path.home() / ".cache" / "cyxwiz"
    ctx = LocalContext(device=device, threads=threads, cache=cache, on_report=_show)
    if artifacts is not None:
        artifacts.mkdir(parents=True, exist_ok=True)
        ctx.artifacts = artifacts
    try:
        for name in given.keys() & set(_JSON_FIELDS):
            given[name] = _parsed(name, given[name])
        result = train(TrainingJob(**given), ctx)
    except CyxwizError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(result, indent=2))


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidJob(name, f"is no JSON ({error})", """Write for example '{"label": "kind"}'""") from None


def _show(report: dict[str, Any]) -> None:
    click.echo(" ".join(f"{key}={value:.4g}" for key, value in report.items()))


if __name__ == "__main__":
    main()
