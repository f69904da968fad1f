"""The next message of a task that retries itself, for the report of its attempt's end: both count, or neither."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from celery import Celery
from celery.canvas import Signature

from cyxwiz_tasks.envelope import envelope
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER
from cyxwiz_tasks.runtime.pipe import relayed_value


class NextTry(NamedTuple):
    """`text` is the message; `in_seconds` is how long after its attempt's end it is due, None: its `eta` says when."""

    text: str
    in_seconds: float | None


def retry_message(app: Celery, encoded: str, server_ahead_seconds: float) -> NextTry:
    """The signature that `self.retry()` made in the job's process, as its message would lie in the inbox.

    An `eta` was said by this node's clock; the message says it by the server's. A countdown needs no clock, which may
    have jumped since it was last compared.
    """
    signature = Signature.from_dict(relayed_value(encoded), app=app)
    headers = {name: value for name, value in signature.options["headers"].items() if name != ASSIGNMENT_HEADER}
    options = signature.options | {"headers": headers}
    ahead, countdown, eta = timedelta(seconds=server_ahead_seconds), options.pop("countdown", None), options.get("eta")
    if countdown is not None:
        options["eta"] = datetime.now(UTC) + timedelta(seconds=countdown) + ahead
    elif eta is not None:
        options["eta"] = (datetime.fromisoformat(eta) if isinstance(eta, str) else eta) + ahead
    arguments = (tuple(signature.args), signature.kwargs)
    return NextTry(envelope(app, signature.task, options["task_id"], arguments, options).decode(), countdown)
