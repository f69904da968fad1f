"""Flower over the project's application: loopback, basic auth with a generated password, nothing kept as a pickle."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from cyxwiz_tasks.errors import InvalidSettings
from db.embedded_server import write_private

USER = "cyxwiz"
DEFAULT_PORT = 5555
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Login:
    """`is_new`: generated just now, so whoever started Flower must be told."""

    password: str
    is_new: bool


def login(home: Path) -> Login:
    """The password of this home's Flower, generated at first use and kept in a file that its owner alone can read."""
    file = home / "flower.password"
    with suppress(FileNotFoundError):
        # A file left empty, as by a full disk, is no password: Flower would ask nobody for any.
        if kept := file.read_text().strip():
            return Login(kept, is_new=False)
    home.mkdir(parents=True, exist_ok=True)
    made = secrets.token_urlsafe(12)
    write_private(file, made + "\n")
    return Login(made, is_new=True)


def free_port(wanted: int = DEFAULT_PORT) -> int:
    """`wanted` if nobody listens on it at loopback, else another one that is free."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("the kernel has no free port")


def serve(address: str, port: int, password: str | None) -> None:
    """Serve until SIGTERM or SIGINT. `password` None: no authentication, allowed at loopback alone.

    Raises InvalidSettings when the port is taken, or the address is open to others without a password.
    """
    if password is None and address not in LOOPBACK:
        raise InvalidSettings("--no-auth: only with --address 127.0.0.1: who reaches Flower can end every job")
    import signal

    from flower.app import Flower
    from flower.options import options
    from flower.urls import settings as handlers
    from tornado.ioloop import IOLoop

    from cyxwiz_tasks.celery_app import app

    options.address, options.port = address, port
    options.basic_auth = [f"{USER}:{password}"] if password else []
    options.persistent = False  # it would be a pickle on disk
    flower = Flower(capp=app, options=options, **handlers)
    try:
        port = flower.start_http_server()
    except OSError as error:
        raise InvalidSettings(f"--port {port}: {error.strerror}; choose another one") from None
    loop = IOLoop.current()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.add_callback_from_signal(flower.stop))
    click.echo(f"flower ready at http://{address}:{port}/")
    flower.start()
