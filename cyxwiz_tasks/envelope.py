"""A job's Celery message as the bytes that kombu's Redis transport keeps in a list.

Celery's own publisher takes a pooled connection, a declaration and several round trips for each message. Here the
message is made by Celery (`as_task_v2`) and wrapped as kombu would, so a thousand of them travel in one pipeline. And
it is made once for jobs of one kind: each job's own words (its id, its arguments) are put into the gaps of its text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from celery import Celery
from kombu.utils import json as kombu_json

from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.protocol.names import INBOX

#: Options of `apply_async()` that are part of the message, by Celery's names for them there.
_MESSAGE_OPTIONS = (
    "countdown",
    "eta",
    "expires",
    "retries",
    "shadow",
    "ignore_result",
    "group_id",
    "group_index",
    "chord",
    "chain",
    "root_id",
    "parent_id",
    "reply_to",
    "origin",
    "replaced_task_nesting",
)

#: As much as Celery keeps.
_REPR_CHARACTERS = 1024


def gap(name: str) -> str:
    """A text that stands in a template for what each job says itself, and that nobody else can have written."""
    return f"{name} {uuid4().hex}"


_ID, _ARGUMENTS, _KEYWORDS, _BODY = gap("id"), gap("arguments"), gap("keywords"), gap("body")


class Template:
    """The message of jobs that differ in id and arguments alone, and in the values that stand at `gaps` in `options`.

    `options` are Celery's, with our header in `headers`.
    """

    def __init__(
        self, app: Celery, task: str, options: Mapping[str, Any], gaps: Mapping[str, str] | None = None
    ) -> None:
        chosen = {name: options[name] for name in _MESSAGE_OPTIONS if options.get(name) is not None}
        # Canvas stamps: Celery keeps each as an option of its own name, and lists these.
        if stamped := options.get("stamped_headers"):
            chosen |= {"stamped_headers": stamped} | {name: options.get(name) for name in stamped}
        headers, properties, body, _ = app.amqp.as_task_v2(
            _ID,
            task,
            callbacks=_listed(options.get("link")),
            errbacks=_listed(options.get("link_error")),
            argsrepr=_ARGUMENTS,
            kwargsrepr=_KEYWORDS,
            **chosen,
        )
        self._embedded = _as_json(body[2])
        message = {
            "body": _BODY,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers | options["headers"],
            "properties": properties
            | {
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": INBOX},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": _ID,
            },
        }
        own = {"id": _ID, "arguments": _ARGUMENTS, "keywords": _KEYWORDS, "body": _BODY} | dict(gaps or {})
        text = json.dumps(message).replace("%", "%%")
        for name, mark in own.items():
            text = text.replace(f'"{mark}"', f"%({name})s")
        self._text = text

    def message(
        self, job_id: str, args: Any, kwargs: Mapping[str, Any], texts: Mapping[str, Any] | None = None
    ) -> bytes:
        """The message of one job, for LPUSH to the inbox; `texts` fill the gaps.

        Raises InvalidJob for arguments that JSON cannot carry.
        """
        body = f"[{_as_json(args)}, {_as_json(kwargs)}, {self._embedded}]"
        own = {
            "id": f'"{job_id}"',
            # What Flower shows of them. Celery's own `saferepr` takes a fifth of the time of a whole submission.
            "arguments": json.dumps(repr(args)[:_REPR_CHARACTERS]),
            "keywords": json.dumps(repr(kwargs)[:_REPR_CHARACTERS]),
            "body": f'"{base64.b64encode(body.encode()).decode()}"',
        }
        for name, text in (texts or {}).items():
            own[name] = json.dumps(text)
        return (self._text % own).encode()


def envelope(
    app: Celery, task: str, job_id: str, arguments: tuple[Any, Mapping[str, Any]], options: Mapping[str, Any]
) -> bytes:
    """The message of a single job: `arguments` are its positional and its named ones. Raises InvalidJob."""
    return Template(app, task, options).message(job_id, *arguments)


def _as_json(value: Any) -> str:
    if not value:
        return "{}" if isinstance(value, Mapping) else "[]"
    try:
        text: str = kombu_json.dumps(value)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the arguments' own ways to become JSON raise
        raise InvalidJob(
            "arguments", f"JSON cannot carry them: {error}", "Pass numbers, texts, lists and dicts"
        ) from None
    return text


def _listed(signatures: Any) -> list[Any] | None:
    """One signature (a dict) or several, as a list."""
    return [signatures] if isinstance(signatures, dict) else signatures
