"""A job's Celery message: read out of the inbox, and made again for the queue of one node.

Reading is on the path of every submission, so it looks at each field once: plain dictionaries for what is Celery's,
pydantic for our own header alone, and for equal headers only once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from cyxwiz_tasks.complaints import reason
from cyxwiz_tasks.errors import CyxwizError, InvalidJob, ProtocolError
from cyxwiz_tasks.protocol.headers import LONGEST_SECONDS, VERSION, Assignment, JobHeader
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, HEADER, TRAIN_TASK, node_queue
from cyxwiz_tasks.resources import Resources

#: a message beyond this is refused: data belongs into a data set, not into a task's arguments
MESSAGE_LIMIT_BYTES = 1024 * 1024
#: above this not even the sender is looked up
_UNREAD_BYTES = 8 * MESSAGE_LIMIT_BYTES

#: beyond them `datetime` and PostgreSQL disagree on what a time is
_FIRST_YEAR, _LAST_YEAR = 1970, 2999
_NO_RESOURCES = Resources()
#: by their text, those that were read last
_headers: dict[str, JobHeader] = {}
_HEADERS_KEPT = 1024
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,500}")


class Refused(Exception):
    """A message that cannot become a job, and who to tell: its sender waits on `reply_to` for news of `id`."""

    def __init__(self, error: CyxwizError, id: str | None = None, reply_to: str | None = None) -> None:
        super().__init__(str(error))
        self.error, self.id, self.reply_to = error, id, reply_to


@dataclass(slots=True)
class Arrival:
    """One readable message."""

    id: str
    task: str
    #: Celery's count of `self.retry()`: a message with a known id and a higher count starts the job over
    retries: int
    ignore_result: bool
    header: JobHeader
    #: what the record keeps: Celery's headers, ours without `reply_to`
    headers: dict[str, Any]
    body: str
    #: everything else of the message
    properties: dict[str, Any]
    not_before: datetime | None
    expires_at: datetime | None
    time_limit_seconds: float | None
    #: tells two jobs apart that claim one id or one idempotency key
    digest: str
    #: the whole message as it came
    envelope: str


def read(raw: bytes) -> Arrival:
    """A job out of a message of the inbox.

    Raises Refused.
    """
    if len(raw) > _UNREAD_BYTES:
        raise Refused(ProtocolError(_too_large(raw)))
    try:
        text = raw.decode()
        message = _parsed(text)
        headers = message["headers"]
        ours = headers[HEADER]
    except (ValueError, RecursionError):
        raise Refused(ProtocolError("the message is no JSON: send jobs with task_serializer=json")) from None
    except (KeyError, TypeError):
        error = ProtocolError(f"the message has no header {HEADER!r}: send it by a task of cyxwiz_tasks")
        raise Refused(error, _id_of_no_job(message)) from None
    id, reply_to = _sender(headers, ours)
    try:
        if len(raw) > MESSAGE_LIMIT_BYTES:
            raise ProtocolError(_too_large(raw))
        return _arrival(text, message, headers, ours)
    except CyxwizError as error:
        raise Refused(error, id, reply_to) from None


def _id_of_no_job(message: Any) -> str | None:
    """The id of a plain Celery task, sent by its name, say: who sent it waits for its result."""
    headers = message.get("headers") if isinstance(message, dict) else None
    return _sender(headers, None)[0] if isinstance(headers, dict) else None


def _parsed(text: str) -> Any:
    try:
        # Three times as fast as `json`, but it takes no half of a surrogate pair.
        return from_json(text)
    except ValueError:
        return json.loads(text)


def _too_large(raw: bytes) -> str:
    return f"the message has {len(raw)} bytes, allowed are {MESSAGE_LIMIT_BYTES}: put data into a data set or a file"


def _sender(headers: dict[str, Any], ours: Any) -> tuple[str | None, str | None]:
    id, reply_to = headers.get("id"), ours.get("reply_to") if isinstance(ours, dict) else None
    known = id if isinstance(id, str) and len(id) <= 200 else None
    return known, reply_to if isinstance(reply_to, str) else None


def _arrival(text: str, message: dict[str, Any], headers: dict[str, Any], ours: Any) -> Arrival:
    id, task, retries, body = headers.get("id"), headers.get("task"), headers.get("retries") or 0, message.get("body")
    if not isinstance(id, str) or not _UUID.fullmatch(id):
        raise InvalidJob("id", f"{id!r} is not a UUID in lower case", "leave it out to get one")
    if not isinstance(task, str) or not _NAME.fullmatch(task):
        raise InvalidJob("task", "is no name of 1 to 500 printable characters")
    if not isinstance(retries, int) or not 0 <= retries < 2**31:
        raise InvalidJob("retries", f"{retries!r} is not a count")
    if not isinstance(body, str) or not isinstance(message.get("properties"), dict):
        raise ProtocolError("the message has no body or no properties")
    header = _header(ours)
    if task == TRAIN_TASK and header.resources.nodes > 1:
        raise InvalidJob(
            "resources.nodes",
            "a TrainingJob trains on one node",
            "For several write a @job that calls torch.distributed.init_process_group: docs/scheduling.md",
        )
    ours.pop("reply_to", None)
    del message["headers"], message["body"]
    time_limits = headers.get("timelimit") or [None]
    if not isinstance(time_limits, list):
        raise InvalidJob("timelimit", f"{time_limits!r} is no list of two numbers of seconds")
    return Arrival(
        id=id,
        task=task,
        retries=retries,
        ignore_result=bool(headers.get("ignore_result")),
        header=header,
        headers=headers,
        body=body,
        properties=message,
        not_before=_moment("eta", headers.get("eta")),
        expires_at=_moment("expires", headers.get("expires")),
        time_limit_seconds=header.time_limit_seconds or _seconds("timelimit", time_limits[0]),
        digest=hashlib.sha256(f"{task}\0{header.resources.shape}\0{body}".encode("utf-8", "surrogatepass")).hexdigest(),
        envelope=text,
    )


def _header(ours: Any) -> JobHeader:
    """Few kinds of work make up most jobs: to check a header takes longer than to read the rest of its message."""
    if not isinstance(ours, dict):
        raise ProtocolError(f"the header {HEADER!r} is no JSON object")
    key = repr(ours)
    header = _headers.get(key)
    if header is None:
        header = _checked(ours)
        if len(_headers) >= _HEADERS_KEPT:
            _headers.clear()
        _headers[key] = header
    return header


def _checked(ours: dict[str, Any]) -> JobHeader:
    if ours.get("version") != VERSION:
        raise ProtocolError(
            f"the message has version {ours.get('version')!r} of the protocol and this scheduler speaks {VERSION}: "
            "use the same release of cyxwiz-tasks on both sides"
        )
    resources = _resources(json.dumps(ours.get("resources") or {})) if "resources" in ours else _NO_RESOURCES
    try:
        return JobHeader.model_validate(ours | {"resources": resources})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or HEADER
        raise InvalidJob(field, reason(first)) from None


@lru_cache(maxsize=4096)
def _resources(text: str) -> Resources:
    """Equal requirements are one object. Raises InvalidJob."""
    return Resources.parse(json.loads(text))


def _moment(field: str, value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise InvalidJob(field, f"{value!r} is not a time in ISO 8601") from None
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise InvalidJob(field, f"{value!r} is not a time between the years 1970 and 2999")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _seconds(field: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value <= LONGEST_SECONDS:
        raise InvalidJob(field, f"{value!r} is not a number of seconds")
    return float(value)


def for_node(
    headers: dict[str, Any], body: str, properties: dict[str, Any], assignment: Assignment, publication: int = 1
) -> str:
    """The message that puts an attempt into its node's queue: the same body and headers, and our assignment.

    `eta` and `expires` are gone: the scheduler has judged them, and a node that judged `expires` once more would drop
    the message without a report. `publication` counts the times that this attempt was published, so that no two
    messages share a delivery tag.
    """
    queue = node_queue(assignment.node)
    assigned = vars(assignment)
    if assignment.gang is not None:
        assigned = assignment.model_dump(mode="json")
        if assignment.gang.rank:
            headers, body = headers | {"ignore_result": True}, _without_waiters(body, properties)
    message = properties | {
        "body": body,
        "headers": headers | {"eta": None, "expires": None, ASSIGNMENT_HEADER: assigned},
        "properties": properties["properties"]
        | {
            "priority": 0,
            "delivery_tag": f"{assignment.token}.{publication}",
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }
    return json.dumps(message)


def _without_waiters(body: str, properties: dict[str, Any]) -> str:
    """The same arguments without callbacks, chain and chord: of a gang only rank 0 has them."""
    is_base64 = properties["properties"].get("body_encoding") == "base64"
    args, kwargs, _ = json.loads(base64.b64decode(body) if is_base64 else body)
    text = json.dumps([args, kwargs, {}])
    return base64.b64encode(text.encode()).decode() if is_base64 else text
