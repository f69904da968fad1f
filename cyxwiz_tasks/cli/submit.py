"""`cyxwiz submit`: a training out of options or a file, or a job function of the user's own."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Console

from cyxwiz_tasks.cli.array import array_options_of, show_array
from cyxwiz_tasks.cli.follow import follow
from cyxwiz_tasks.cli.options import after_of, json_option, parse_json, print_json, resource_options, resources_of
from cyxwiz_tasks.cli.sections import sectioned
from cyxwiz_tasks.client import Client, Job
from cyxwiz_tasks.errors import CyxwizError, InvalidJob, JobFailed
from cyxwiz_tasks.handle import JobHandle
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.training_job import TrainingJob
from cyxwiz_tasks.training_result import TrainingResult

#: Fields of a TrainingJob whose values are JSON objects.
_OBJECTS = ("model_options", "dataset_options")
_FLAGS = ("deterministic", "compile", "channels_last")
#: What one submission takes beside the job itself: options here, keys of a file too.
_SUBMISSION = ("priority", "id", "idempotency_key", "owner", "project", "time_limit", "after")


def _training_options(function: Any) -> Any:
    """One option for each field of a TrainingJob, which checks the values itself."""
    for name, field in reversed(TrainingJob.model_fields.items()):
        flag = name.replace("_", "-")
        if name in _FLAGS:
            function = click.option(f"--{flag}/--no-{flag}", name, default=None)(function)
        else:
            function = click.option(f"--{flag}", name, metavar=_kind(name, field), help=_default(field))(function)
    return function


def _kind(name: str, field: FieldInfo) -> str:
    if name in _OBJECTS:
        return "JSON"
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    return "VALUE"


def _default(field: FieldInfo) -> str | None:
    return None if field.is_required() or field.default in (None, PydanticUndefined) else f"default: {field.default}"


@sectioned(
    "Send a training, or a job function, and follow it.",
    Training=tuple(TrainingJob.model_fields),
    Resources=tuple(Resources.model_fields),
)
@_training_options
@click.option("--spec", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON or TOML: the fields.")
@click.option("--task", metavar="MODULE:FUNCTION", help="A @job function instead of a training.")
@click.option("--args", "arguments", metavar="JSON", help="A list, for --task.")
@click.option("--kwargs", metavar="JSON", help="An object, for --task.")
@resource_options
@click.option("--priority", help="low, normal, high or critical.")
@click.option("--time-limit", help="30m, 4h, 2d or seconds.")
@click.option("--id", metavar="UUID", help="The same id is the same job.")
@click.option("--idempotency-key", metavar="TEXT", help="The same key is the same job.")
@click.option("--owner", help="By default whoever runs this.")
@click.option("--project")
@click.option("--after", multiple=True, metavar="JOB[:KIND]", help="Once it ended: ok (default), fail or any.")
@click.option("--grid", multiple=True, metavar="NAME=V1,V2", help="An array: one job for each value; repeatable.")
@click.option("--at-most", metavar="N", type=click.IntRange(1), help="Of the array, so many at once.")
@click.option("--early-stopping", metavar="JSON", help="Of the array, end the worst: docs/sweeps.md.")
@click.option("-f", "--follow", "wanted", is_flag=True, help="Watch it to its end.")
@json_option
def command(
    spec: Path | None,
    task: str | None,
    arguments: str | None,
    kwargs: str | None,
    grid: tuple[str, ...],
    at_most: int | None,
    early_stopping: str | None,
    wanted: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Send a training, or a job function, and print its id.

    \b
    cyxwiz submit --model cnn --dataset digits --epochs 15 --follow
    cyxwiz submit --spec training.toml --gpu-memory 24GB.. --priority high
    cyxwiz submit --task train:finetune --kwargs '{"learning_rate": 1e-4}'
    cyxwiz submit --model cnn --dataset digits --grid learning_rate=0.1,0.01 --grid seed=0,1 --at-most 2

    A file has the same names as the options, and may have a table `resources`; options overrule it. Exit status: 0 the
    job was sent (with --follow: it succeeded), 1 it failed, 2 it was refused, 3 no stack runs.
    """
    array_options = array_options_of(grid, at_most, early_stopping)
    job, submission = prepared(spec, task, arguments, kwargs, options)
    with Client() as client:
        if submission["after"]:
            submission["after"] = [after_of(client, text) for text in _texts(submission["after"])]
        if grid:
            array = client.map(job, **array_options, **_given(submission))
            raise SystemExit(show_array(array, wanted=wanted, as_json=as_json))
        handle = client.submit(job, **submission)
        if not wanted:
            _say_sent(handle, as_json)
        elif as_json:
            print_json(_outcome(handle))
        else:
            raise SystemExit(_watch(handle))


def prepared(
    spec: Path | None, task: str | None, arguments: str | None, kwargs: str | None, options: dict[str, Any]
) -> tuple[Job, dict[str, Any]]:
    """The job out of the options of `cyxwiz submit`, and what `Client.submit` takes beside it. Raises InvalidJob."""
    fields = {} if spec is None else _read(spec)
    resources = resources_of(options, fields.pop("resources", None))
    fields |= {name: value for name, value in options.items() if value is not None and value != ()}
    submission = {name: fields.pop(name, None) for name in _SUBMISSION}
    if task is None:
        job: Job = _training(fields)
    else:
        submission["name"] = fields.pop("name", None)
        job = _function(task, arguments, kwargs, fields)
    if resources.shape != "{}":
        submission["resources"] = resources
    return job, submission


def _given(submission: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in submission.items() if value is not None}


def _training(fields: dict[str, Any]) -> TrainingJob:
    for name in _OBJECTS:
        if isinstance(fields.get(name), str):
            fields[name] = parse_json(name, fields[name], dict, '{"hidden": [128, 64]}')
    for name in ("model", "dataset"):
        if not fields.get(name):
            raise InvalidJob(name, "is missing", "Write --model cnn --dataset digits, or --spec FILE")
    return TrainingJob(**fields)


def _function(task: str, arguments: str | None, kwargs: str | None, fields: dict[str, Any]) -> Job:
    if fields:
        raise InvalidJob(sorted(fields)[0], "is a field of trainings, not of --task", "Pass it in --kwargs")
    module, _, name = task.partition(":")
    if not name or not module or module.startswith("."):
        raise InvalidJob("task", f"{task!r} names no function", "Write --task MODULE:FUNCTION")
    # As `python MODULE.py` would find it.
    sys.path.insert(0, os.getcwd())
    try:
        found = attrgetter(name)(import_module(module))
    except ImportError as error:
        raise InvalidJob("task", str(error), f"Run this where `python -c 'import {module}'` works") from None
    except AttributeError:
        raise InvalidJob("task", f"{module} has no {name!r}", "See its spelling: MODULE:FUNCTION") from None
    if not hasattr(found, "job_header"):
        raise InvalidJob("task", f"{task} is no job", "Put @job before it")
    return found.s(
        *parse_json("args", arguments or "[]", list, "[1, 2]"),
        **parse_json("kwargs", kwargs or "{}", dict, '{"rate": 0.1}'),
    )


def _read(spec: Path) -> dict[str, Any]:
    try:
        text = spec.read_text()
        read: Any = tomllib.loads(text) if spec.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise InvalidJob(
            "spec", f"{spec} cannot be read: {error}", "It must be JSON, or TOML in a file *.toml"
        ) from None
    if not isinstance(read, dict):
        raise InvalidJob("spec", f"{spec} holds no object", 'Write {"model": "cnn", "dataset": "digits"}')
    return read


def _say_sent(handle: JobHandle, as_json: bool) -> None:
    if as_json:
        print_json({"id": handle.id, "state": handle.state})
    else:
        click.echo(handle.id)


def _watch(handle: JobHandle) -> int:
    console = Console()
    console.print(f"job {handle.id}", style="bold")
    try:
        return follow(handle, console)
    except KeyboardInterrupt:
        console.print(f"\nthe job goes on: cyxwiz logs -f {handle.id}, cyxwiz cancel {handle.id}")
        return 130


def _outcome(handle: JobHandle) -> dict[str, Any]:
    """The end of a job as JSON. Raises JobFailed, JobCancelled."""
    try:
        value = handle.result()
    except CyxwizError as error:
        if not isinstance(error, InvalidJob):
            raise
        # The job was accepted: a model that does not fit its data is why it failed, and no wrong use of this command.
        raise JobFailed(f"{type(error).__name__}: {error}") from None
    except Exception as error:  # the job's own exception, whatever it is
        raise JobFailed(f"{type(error).__name__}: {error}") from None
    facts: dict[str, Any] = {"id": handle.id, "state": handle.state}
    if isinstance(value, TrainingResult):
        paths = {name: str(path) for name, path in value.artifacts.items()}
        return facts | {"metrics": value.metrics, "artifacts": paths, "stopped": value.stopped}
    return facts | {"result": value}


def _texts(value: Any) -> list[str]:
    """What a file may give as one text or as a list of them. Raises InvalidJob."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise InvalidJob("after", f"{value!r} names no jobs", 'Write "JOB", "JOB:fail" or a list of such texts')
    return texts
