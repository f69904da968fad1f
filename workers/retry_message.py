"""The next message of a task that retries itself, for the report of its attempt's end: both count, or neither."""

from __future__ import annotations

from celery import Celery
from celery.canvas import Signature

from cyxwiz_tasks.envelope import envelope
from cyxwiz_tasks.protocol import ASSIGNMENT_HEADER
from cyxwiz_tasks.runtime.pipe import decode_value


def retry_message(app: Celery, encoded: str) -> str:
    """The signature that `self.retry()` made in the job's process, as its message would lie in the inbox."""
    signature = Signature.from_dict(decode_value(encoded), app=app)
    headers = {name: value for name, value in signature.options["headers"].items() if name != ASSIGNMENT_HEADER}
    options = signature.options | {"headers": headers}
    arguments = (tuple(signature.args), signature.kwargs)
    return envelope(app, signature.task, options["task_id"], arguments, options).decode()
