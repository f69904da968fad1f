"""What the node's agent and the job's process say to each other: JSON objects with a `kind`, one in each frame.

agent -> process: `run` (once), `stop`. process -> agent: `ready` (once), `progress`, `heeds` (whether the function asks
`should_stop`), and one of `returned`, `raised`, `exited`, `retry`, `not_json`, `too_large` at the end. Arguments and results are encoded as Celery
encodes them, so dates, UUIDs and decimals arrive as what they were; everything else is plain JSON.
"""

from __future__ import annotations

import json
import threading
from multiprocessing.connection import Connection
from typing import Any

from kombu.utils import json as celery_json

Frame = dict[str, Any]


class Pipe:
    """One end of the connection. Any thread may send; one thread at a time receives."""

    def __init__(self, fd: int) -> None:
        """Takes over the socket `fd`."""
        self._connection: Connection[Any, Any] = Connection(fd)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, frame: Frame) -> None:
        """Send one frame. Raises OSError once the other end is gone."""
        self.send_encoded(json.dumps(frame, separators=(",", ":")).encode())

    def send_encoded(self, frame: bytes) -> None:
        with self._lock:
            self._connection.send_bytes(frame)

    def receive(self) -> Frame:
        """Wait for one frame. Raises EOFError or OSError once the other end is gone."""
        frame: Frame = json.loads(self._connection.recv_bytes())
        return frame

    def has_more(self) -> bool:
        """Whether `receive` would return, or raise EOFError, at once."""
        return self._connection.poll(0)

    def close(self) -> None:
        self._connection.close()


def encode_value(value: Any) -> str:
    """Arguments or a result as Celery's JSON. Raises TypeError or ValueError for what JSON cannot carry."""
    text: str = celery_json.dumps(value)
    return text


def decode_value(text: str) -> Any:
    """What `encode_value` was given."""
    return celery_json.loads(text)
