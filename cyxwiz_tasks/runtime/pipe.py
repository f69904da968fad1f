"""What the node's agent and the job's process say to each other: JSON objects with a `kind`, one in each frame.

agent -> process: `run` (once), `stop`, and for an exclusive job `lease` (until when it may run).
process -> agent: `ready` (once), `progress`, `heeds` (whether the function asks `should_stop`), and one of `returned`,
`raised`, `exited`, `retry`, `not_json`, `too_large`, `cut_off` at the end.
Arguments and results are encoded as Celery encodes them, so dates, UUIDs and decimals arrive as what they were;
everything else is plain JSON.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import Any

from kombu.utils import json as celery_json

Frame = dict[str, Any]

#: Upon this a job's process writes down where each of its threads is. One that nobody else uses.
STACK_DUMP_SIGNAL: int = signal.SIGRTMAX - 1 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2

_LENGTH = struct.Struct("!I")
#: Arguments and results are far smaller; a length beyond this is noise that a job wrote to the wrong descriptor.
_LONGEST_FRAME_BYTES = 256 * 2**20
_READ_BYTES = 64 * 1024


class Pipe:
    """One end of the connection. Any thread may send; one thread at a time receives."""

    def __init__(self, fd: int) -> None:
        """Takes over the stream socket `fd`."""
        self._socket = socket.socket(fileno=fd)
        # While Celery's consumer drops a connection, all sockets of its process get a default time-out. Made in that
        # moment, this one would give up waiting, and so would its other end in a job's process: they share a flag.
        self._socket.setblocking(True)
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._frames: deque[Frame] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frame: Frame) -> None:
        """Send one frame. Raises OSError once the other end is gone."""
        self.send_encoded(json.dumps(frame, ensure_ascii=False).encode("utf-8", "replace"))

    def send_encoded(self, frame: bytes) -> None:
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(frame)) + frame)

    def send_if_room(self, frame: Frame) -> bool:
        """Send a short frame unless the other end has let so many gather that there is no room: it does not read.

        Raises OSError once the other end is gone.
        """
        data = json.dumps(frame).encode()
        with self._lock, suppress(BlockingIOError):
            # All of it or nothing: a frame this short is one piece to the kernel.
            self._socket.send(_LENGTH.pack(len(data)) + data, socket.MSG_DONTWAIT)
            return True
        return False

    def wait(self, seconds: float) -> bool:
        """Whether something has arrived, or does within so many seconds. Raises OSError."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(self._frames) or bool(poll.poll(max(0.0, seconds) * 1000))

    def receive(self) -> Frame:
        """Wait for one frame. Raises EOFError or OSError once the other end is gone."""
        while not self._frames:
            self._read(0)
        return self._frames.popleft()

    def receive_all(self) -> list[Frame]:
        """Every frame that has arrived whole; never waits for the rest of one.

        Raises EOFError or OSError once the other end is gone and all has been received.
        """
        try:
            self._read(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        frames = list(self._frames)
        self._frames.clear()
        return frames

    def hang_up(self) -> None:
        """Let the other end know that nobody listens. Never raises."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _read(self, flags: int) -> None:
        data = self._socket.recv(_READ_BYTES, flags)
        if not data:
            raise EOFError
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            length = _LENGTH.unpack_from(self._buffer)[0]
            if length > _LONGEST_FRAME_BYTES:
                raise OSError(f"a frame of {length} bytes on the job's pipe: something else writes to it")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            self._frames.append(json.loads(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]


def encode_value(value: Any) -> str:
    """Arguments or a result as Celery's JSON. Raises TypeError or ValueError for what JSON cannot carry."""
    text: str = celery_json.dumps(value)  # type: ignore[no-untyped-call]
    return text


def decode_value(text: str) -> Any:
    """What `encode_value` was given."""
    return celery_json.loads(text)  # type: ignore[no-untyped-call]


def relayed_value(text: str) -> Any:
    """The same for whoever hands it on: what only the job knows how to decode stays as it is encoded."""
    return celery_json.loads(text, object_hook=_if_known)  # type: ignore[no-untyped-call]


def _if_known(found: dict[str, Any]) -> Any:
    try:
        return celery_json.object_hook(found)
    except Exception:  # whatever the decoders of all types raise
        return found
