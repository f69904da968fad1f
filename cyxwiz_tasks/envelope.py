"""A job's Celery message as the bytes that kombu's Redis transport keeps in a list.

Celery's own publisher takes a pooled connection, a declaration and several round trips for each message. Here the
message is made by Celery (`as_task_v2`) and wrapped as kombu would, so a thousand of them travel in one pipeline.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from celery import Celery
from kombu.exceptions import EncodeError
from kombu.serialization import dumps

from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.protocol import INBOX

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


def envelope(
    app: Celery, task: str, job_id: str, arguments: tuple[Any, Mapping[str, Any]], options: Mapping[str, Any]
) -> bytes:
    """The message that runs `task`, for LPUSH to the inbox.

    `arguments` are positional and named ones; `options` are Celery's, with our header in `headers`.

    Raises InvalidJob for arguments that JSON cannot carry.
    """
    chosen = {name: options[name] for name in _MESSAGE_OPTIONS if options.get(name) is not None}
    headers, properties, body, _ = app.amqp.as_task_v2(
        job_id,
        task,
        arguments[0],
        dict(arguments[1]),
        callbacks=_listed(options.get("link")),
        errbacks=_listed(options.get("link_error")),
        # What Flower shows of them. Celery's own `saferepr` takes a fifth of the time of a whole submission.
        argsrepr=repr(arguments[0])[:_REPR_CHARACTERS],
        kwargsrepr=repr(arguments[1])[:_REPR_CHARACTERS],
        **chosen,
    )
    try:
        content_type, encoding, text = dumps(body, serializer="json")  # type: ignore[no-untyped-call]
    except EncodeError as error:
        raise InvalidJob(
            "arguments", f"JSON cannot carry them: {error}", "Pass numbers, texts, lists and dicts"
        ) from None
    message = {
        "body": base64.b64encode(text.encode()).decode(),
        "content-encoding": encoding,
        "content-type": content_type,
        "headers": headers | options["headers"],
        "properties": properties
        | {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": INBOX},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": job_id,
        },
    }
    return json.dumps(message).encode()


def _listed(signatures: Any) -> list[Any] | None:
    """One signature (a dict) or several, as a list."""
    return [signatures] if isinstance(signatures, dict) else signatures
