"""The jobs of an array, out of one job and the parameters in which they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, TypeAlias

from celery.canvas import Signature

from cyxwiz_tasks.early_stopping import SuccessiveHalving
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.ids import member_id, new_id, parse_id
from cyxwiz_tasks.job_task import JobTask
from cyxwiz_tasks.protocol.headers import ARRAY_LIMIT, Array
from cyxwiz_tasks.training_job import TrainingJob

#: a grid (every combination of these values), or what each job has
Parameters: TypeAlias = Mapping[str, Iterable[Any]] | Sequence[Mapping[str, Any]]

#: names of jobs are no longer
_NAME_CHARACTERS = 200
_EXAMPLE = 'Write {"learning_rate": [0.1, 0.01]}, or [{"learning_rate": 0.1}, {"learning_rate": 0.01}]'


def array_of(
    job: TrainingJob | Signature | JobTask,
    parameters: Parameters,
    at_most: int | None,
    early_stopping: SuccessiveHalving | None,
    id: str | None,
    name: str | None,
    options: Mapping[str, Any],
) -> tuple[Array, list[tuple[TrainingJob | Signature, dict[str, Any]]]]:
    """The array, and its jobs in their order, each with its own options: id and name. Raises InvalidJob."""
    if "idempotency_key" in options:
        raise InvalidJob("idempotency_key", "is of single jobs", "Give the array an id: the same id is the same array")
    if at_most is not None and (not isinstance(at_most, int) or isinstance(at_most, bool) or at_most < 1):
        raise InvalidJob("at_most", f"{at_most!r} is not a number of jobs", "Write a whole number from 1 on")
    if early_stopping is not None and not isinstance(early_stopping, SuccessiveHalving):
        raise InvalidJob("early_stopping", f"{early_stopping!r} is no rule", 'Write SuccessiveHalving("val_accuracy")')
    chosen = combinations(parameters)
    array_id = new_id() if id is None else parse_id(id)
    jobs = []
    for index, values in enumerate(chosen):
        own = {"id": member_id(array_id, index), "name": _name(name or _name_of(job), values)}
        jobs.append((with_parameters(job, values), own))
    shared = {"name": name or _name_of(job), "at_most": at_most, "early_stopping": early_stopping}
    array = Array(id=array_id, size=len(jobs), **shared)
    return array, jobs


def combinations(parameters: Parameters) -> list[dict[str, Any]]:
    """The parameters of each job; of a grid, the last name changes fastest. Raises InvalidJob."""
    if isinstance(parameters, Mapping):
        axes = {str(name): _values(str(name), values) for name, values in parameters.items()}
        count = prod(len(values) for values in axes.values())
        if axes and count <= ARRAY_LIMIT:
            return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    elif isinstance(parameters, Sequence) and all(isinstance(values, Mapping) for values in parameters):
        count = len(parameters)
        if 0 < count <= ARRAY_LIMIT:
            return [dict(values) for values in parameters]
    else:
        raise InvalidJob("parameters", f"a {type(parameters).__name__} is no grid and no list of dicts", _EXAMPLE)
    if not parameters:
        raise InvalidJob("parameters", "are empty", _EXAMPLE)
    raise InvalidJob("parameters", f"make {count} jobs, allowed in one array are {ARRAY_LIMIT}", "Send several arrays")


def with_parameters(job: TrainingJob | Signature | JobTask, values: Mapping[str, Any]) -> TrainingJob | Signature:
    """The job with these fields or arguments. Raises InvalidJob; TypeError where its function does not have them."""
    if isinstance(job, TrainingJob):
        return TrainingJob(**(job.model_dump(exclude_unset=True) | dict(values)))
    if isinstance(job, JobTask):
        return job.s(**values)
    if isinstance(job, Signature) and not job.get("subtask_type"):
        # `clone(kwargs=...)` leaves the arguments of an immutable one (`.si()`) as they are.
        made = job.clone()
        made["kwargs"] = {**made["kwargs"], **values}
        return made
    raise InvalidJob(
        "job",
        f"a {type(job).__name__} is not one job",
        "Pass a TrainingJob, a @job function, or a signature of one such as finetune.s(epochs=3)",
    )


def _values(name: str, values: Any) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidJob(f"parameters.{name}", f"{str(values)[:60]!r} is no list of values", _EXAMPLE)
    found = list(values)
    if not found:
        raise InvalidJob(f"parameters.{name}", "has no values", _EXAMPLE)
    return found


def _name_of(job: Any) -> str | None:
    if isinstance(job, TrainingJob):
        return job.name or job.model
    name = job.name if isinstance(job, JobTask) else job.get("task") if isinstance(job, Signature) else None
    return str(name).rpartition(".")[2] if name else None


def _name(common: str | None, values: Mapping[str, Any]) -> str:
    """What people see of one job in lists: what it shares with the others, and what it does not."""
    told = " ".join(f"{name}={value}" for name, value in values.items())
    text = f"{common} {told}".strip() if common else told
    return "".join(c if c.isprintable() else "?" for c in text)[:_NAME_CHARACTERS] or "array"
