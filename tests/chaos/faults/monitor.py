"""What the scheduler's scripts push onto one list of Redis, as MONITOR tells it."""

from __future__ import annotations

import ast
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from broker.embedded import EmbeddedRedis


@contextmanager
def recorded_pushes(server: EmbeddedRedis, key: str) -> Iterator[list[bytes]]:
    """A list that fills with the values of every LPUSH onto `key` by a script."""
    pushed: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.socket_path))
        connection.sendall(f"AUTH {server.password}\r\nMONITOR\r\n".encode())
        reader = threading.Thread(target=_read, args=(connection, key, pushed), daemon=True)
        reader.start()
        yield pushed
        connection.shutdown(socket.SHUT_RDWR)
        reader.join()


def _read(connection: socket.socket, key: str, pushed: list[bytes]) -> None:
    command = re.compile(rb' lua\] "LPUSH" "' + re.escape(key.encode()) + rb'" ("(?:[^"\\]|\\.)*")')
    with connection.makefile("rb") as lines:
        for text in lines:
            if (found := command.search(text)) is not None:
                # Quoted as C would: a bytes literal of Python reads the same.
                pushed.append(ast.literal_eval("b" + found[1].decode("latin-1")))
