"""From what a user hands to `submit()` to the bytes of a message, with every mistake told before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.canvas import Signature

from cyxwiz_tasks.envelope import envelope
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.ids import new_id, parse_id
from cyxwiz_tasks.job_header import JOB_OPTIONS, fold, os_user
from cyxwiz_tasks.protocol import HEADER, TRAIN_TASK, JobHeader
from cyxwiz_tasks.training_job import TrainingJob

#: Options of one submission, beside Celery's own that a signature may carry.
SUBMIT_OPTIONS = (*JOB_OPTIONS, "id")


@dataclass(frozen=True, slots=True)
class Submission:
    """One job, ready to be sent."""

    id: str
    task: str
    ignore_result: bool
    message: bytes


def prepare(app: Celery, job: TrainingJob | Signature, options: dict[str, Any], reply_to: str | None) -> Submission:
    """The message of one job.

    Raises InvalidJob that names the field, TypeError where a signature's arguments do not fit its function.
    """
    unknown = set(options) - set(SUBMIT_OPTIONS)
    if unknown:
        raise InvalidJob(sorted(unknown)[0], "is no option of submit()", f"There are {', '.join(SUBMIT_OPTIONS)}")
    given = options.get("id")
    job_id = new_id() if given is None else parse_id(given)
    ours = {name: value for name, value in options.items() if name != "id" and value is not None}
    if isinstance(job, TrainingJob):
        return _training(app, job, job_id, ours, reply_to)
    if isinstance(job, Signature):
        return _signature(app, job, job_id, ours, reply_to)
    raise InvalidJob(
        "job",
        f"a {type(job).__name__} is no job",
        "Pass a TrainingJob, or a signature such as finetune.s(learning_rate=1e-4)",
    )


def _training(app: Celery, job: TrainingJob, job_id: str, options: dict[str, Any], reply_to: str | None) -> Submission:
    folded = fold(options, JobHeader(owner=os_user(), name=job.name, reply_to=reply_to))
    spec = job.model_dump(mode="json", exclude_defaults=True)
    return Submission(job_id, TRAIN_TASK, False, envelope(app, TRAIN_TASK, job_id, ((spec,), {}), folded))


def _signature(
    app: Celery, signature: Signature, job_id: str, options: dict[str, Any], reply_to: str | None
) -> Submission:
    if signature.get("subtask_type"):
        raise InvalidJob(
            "job", f"a {signature['subtask_type']} is more than one job", "Send it by its own apply_async() or delay()"
        )
    folded = fold({**signature.options, **options})
    if HEADER not in (signature.options.get("headers") or {}):
        raise InvalidJob("job", f"{signature.task} is a plain Celery task", "Make it a job: @job, or base=JobTask")
    _check_arguments(signature)
    # A new dict: the signature may be sent again, by another thread.
    header = {name: value for name, value in folded["headers"][HEADER].items() if name != "reply_to"}
    folded["headers"] |= {HEADER: header | ({} if reply_to is None else {"reply_to": reply_to})}
    message = envelope(app, signature.task, job_id, (signature.args, signature.kwargs), folded)
    return Submission(job_id, signature.task, bool(folded.get("ignore_result")), message)


def _check_arguments(signature: Signature) -> None:
    try:
        task = signature.type
    except KeyError:
        return  # a task of another program: its node will tell
    if task.typing:
        task.__header__(*signature.args, **signature.kwargs)
