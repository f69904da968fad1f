"""A job's output: all that its process tree writes to standard output and error, in a file and in a stream.

Beyond the limit both are cut in the middle: the first half as it comes, the last half once the job has ended. The file
holds the bytes as they were written; the stream holds text. Where the disk is full the file ends, and the stream goes
on.
"""

from __future__ import annotations

import codecs
import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
_LAST_LINES_BYTES = 4096
_LAST_LINES = 10


class JobLog:
    """Written by the attempt's own thread alone. `publish` gets text for the stream."""

    def __init__(self, path: Path, limit_bytes: int, publish: Callable[[str], None]) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            self._give_up_file(error)
        self._half_bytes = limit_bytes // 2
        self._head_bytes = 0
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._cut_bytes = 0
        self._publish = publish
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._last = b""

    def read_from(self, fd: int) -> bool:
        """Take what is there to read. False: nobody will write any more."""
        data = os.read(fd, _READ_BYTES)
        if data:
            self.write(data)
        return bool(data)

    def drain(self, fd: int) -> None:
        """Take all that is still in the pipe, without waiting."""
        os.set_blocking(fd, False)
        try:
            while self.read_from(fd):
                pass
        except BlockingIOError:
            return

    def write(self, data: bytes) -> None:
        self._last = (self._last + data)[-_LAST_LINES_BYTES:]
        head, rest = data[: self._half_bytes - self._head_bytes], data[self._half_bytes - self._head_bytes :]
        if head:
            self._head_bytes += len(head)
            self._put(head)
        if rest:
            self._keep(rest)

    def last_lines(self) -> str:
        """The newest lines, for a message about a crash."""
        lines = self._last.decode("utf-8", "replace").splitlines()
        return "\n".join(line for line in lines[-_LAST_LINES:] if line.strip())

    def close(self) -> None:
        """Write what was kept back, with a mark where something is missing."""
        if self._cut_bytes:
            self._put(f"\n[... {self._cut_bytes} bytes of output are cut here ...]\n".encode())
        for data in self._tail:
            self._put(data)
        if rest := self._decoder.decode(b"", final=True):
            self._publish(rest)
        if self._file is not None:
            self._file.close()

    def _put(self, data: bytes) -> None:
        self._put_into_file(data)
        if text := self._decoder.decode(data):
            self._publish(text)

    def _put_into_file(self, data: bytes) -> None:
        while self._file is not None and data:
            try:
                data = data[self._file.write(data) :]
            except OSError as error:
                self._file.close()
                self._file = None
                self._give_up_file(error)

    def _give_up_file(self, error: OSError) -> None:
        """A full disk costs the file and nothing else; the stream goes on."""
        log.warning("%s ends here: %s", self._path, error)

    def _keep(self, data: bytes) -> None:
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes > self._half_bytes:
            extra = self._tail_bytes - self._half_bytes
            first = self._tail.popleft()
            if len(first) > extra:
                self._tail.appendleft(first[extra:])
            dropped = min(extra, len(first))
            self._tail_bytes -= dropped
            self._cut_bytes += dropped
