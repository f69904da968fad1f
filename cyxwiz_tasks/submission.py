"""From what a user hands to `submit()` to the bytes of a message, with every mistake told before anything is sent."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import Celery
from celery.canvas import Signature
from pydantic_core import PydanticSerializationError, to_json

from cyxwiz_tasks.dependency import parse_after
from cyxwiz_tasks.envelope import Template, gap
from cyxwiz_tasks.errors import InvalidJob, WrongArguments
from cyxwiz_tasks.ids import new_id, parse_id
from cyxwiz_tasks.job_header import JOB_OPTIONS, check_text, fold
from cyxwiz_tasks.protocol.headers import Array
from cyxwiz_tasks.protocol.names import HEADER, TRAIN_TASK
from cyxwiz_tasks.training_job import TrainingJob

#: Options of one submission, beside Celery's own that a signature may carry.
SUBMIT_OPTIONS = (*JOB_OPTIONS, "id")

#: Options that differ from job to job where nothing else does.
_GAPS = {name: gap(name) for name in ("name", "idempotency_key")}
_INDEX = gap("array_index")
#: Celery's options that count from the moment of the call.
_FROM_NOW = {"countdown", "expires"}
#: Kinds of jobs that one call remembers.
_KINDS = 8
_NONE: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Submission:
    """One job, ready to be sent."""

    id: str
    task: str
    ignore_result: bool
    message: bytes


@dataclass(frozen=True, slots=True)
class Member:
    """A job's place in an array."""

    array: Array
    index: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """What jobs have in common whose task and options are equal, and what they are recognised by."""

    task: str
    #: Celery's options; None for a TrainingJob
    celerys: dict[str, Any] | None
    ours: dict[str, Any]
    ignore_result: bool
    array: Array | None
    template: Template


class Preparation:
    """Prepares the jobs of one call. Most of them are of few kinds, whose options are checked and encoded only once."""

    def __init__(self, app: Celery, reply_to: str | None) -> None:
        self.app, self.reply_to = app, reply_to
        self._kinds: deque[_Kind] = deque(maxlen=_KINDS)

    def prepare(
        self, job: TrainingJob | Signature, options: Mapping[str, Any], member: Member | None = None
    ) -> Submission:
        """The message of one job, perhaps of an array.

        Raises InvalidJob that names the field, WrongArguments where a signature's do not fit its function.
        """
        unknown = options.keys() - SUBMIT_OPTIONS
        if unknown:
            raise InvalidJob(sorted(unknown)[0], "is no option of submit()", f"There are {', '.join(SUBMIT_OPTIONS)}")
        ours = {name: value for name, value in options.items() if name != "id" and value is not None}
        if "after" in ours:
            # Handles know their client, which nobody could copy.
            ours["after"] = parse_after(ours["after"])
            if member is None and any(after.kind == "match" for after in ours["after"]):
                raise InvalidJob("after", "match is between two arrays, and this is one job", "Write ok, any or fail")
        given = options.get("id")
        job_id = new_id() if given is None else parse_id(given)
        texts: dict[str, Any] = {name: check_text(name, ours[name]) for name in _GAPS if name in ours}
        if isinstance(job, TrainingJob):
            task, celerys, args, kwargs = TRAIN_TASK, None, (_spec(job),), _NONE
            if job.name is not None:
                texts.setdefault("name", job.name)
        elif isinstance(job, Signature):
            _check_signature(job)
            task, celerys, args, kwargs = job["task"], job["options"], job["args"], job["kwargs"]
        else:
            raise InvalidJob(
                "job",
                f"a {type(job).__name__} is no job",
                "Pass a TrainingJob, or a signature such as finetune.s(learning_rate=1e-4)",
            )
        kind = self._kind(
            task, celerys, ours | {name: _GAPS[name] for name in texts}, member.array if member is not None else None
        )
        if member is not None:
            texts["array_index"] = member.index
        return Submission(job_id, task, kind.ignore_result, kind.template.message(job_id, args, kwargs, texts))

    def _kind(
        self, task: str, celerys: dict[str, Any] | None, ours: dict[str, Any], array: Array | None = None
    ) -> _Kind:
        for known in self._kinds:
            if (known.task, known.array, known.ours, known.celerys) == (task, array, ours, celerys):
                return known
        folded = self._folded(celerys, ours, array)
        gaps = {name: mark for name, mark in _GAPS.items() if name in ours}
        template = Template(self.app, task, folded, gaps if array is None else gaps | {"array_index": _INDEX})
        # Copies: who made the options may change them before the next job.
        kind = _Kind(task, deepcopy(celerys), deepcopy(ours), bool(folded.get("ignore_result")), array, template)
        if not any(
            name in _FROM_NOW or isinstance(value, datetime) for name, value in {**(celerys or {}), **ours}.items()
        ):
            self._kinds.appendleft(kind)
        return kind

    def _folded(self, celerys: dict[str, Any] | None, ours: dict[str, Any], array: Array | None) -> dict[str, Any]:
        """Celery's options, with what the scheduler must know in our header."""
        folded = fold({**(celerys or {}), **ours})
        header = {name: value for name, value in folded["headers"][HEADER].items() if name != "reply_to"}
        if self.reply_to is not None:
            header["reply_to"] = self.reply_to
        if array is not None:
            header |= {"array": array.model_dump(mode="json", exclude_none=True), "array_index": _INDEX}
        return folded | {"headers": folded["headers"] | {HEADER: header}}


def _is_json(options: Mapping[str, Any]) -> bool:
    try:
        to_json(dict(options))
    except PydanticSerializationError:
        return False
    return True


def _spec(job: TrainingJob) -> dict[str, Any]:
    try:
        return job.model_dump(mode="json", exclude_defaults=True)
    except PydanticSerializationError as error:
        field = "model_options" if _is_json(job.dataset_options) else "dataset_options"
        raise InvalidJob(field, f"JSON cannot carry it: {error}", "Pass numbers, texts, lists and dicts") from None


def _check_signature(signature: Signature) -> None:
    """Raises InvalidJob if it is not one job of ours, WrongArguments if its arguments do not fit."""
    if signature.get("subtask_type"):
        raise InvalidJob(
            "job", f"a {signature['subtask_type']} is more than one job", "Send it by its own apply_async() or delay()"
        )
    if HEADER not in (signature["options"].get("headers") or {}):
        raise InvalidJob("job", f"{signature['task']} is a plain Celery task", "Make it a job: @job, or base=JobTask")
    try:
        task = signature.type
    except KeyError:
        return  # a task of another program: its node will tell
    if task.typing:
        try:
            task.__header__(*signature["args"], **signature["kwargs"])
        except TypeError as error:
            takes = f"It takes {inspect.signature(task.__header__)}"
            raise WrongArguments("arguments", str(error), takes) from None
