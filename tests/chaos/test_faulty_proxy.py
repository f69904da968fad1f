"""Each fault of the proxy, seen from both ends of a connection."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.acceptance.processes import wait_until
from tests.chaos.faulty_proxy import FaultyProxy

RESET = b"reset this connection"


class Echo:
    """A server that sends back what it gets, remembers it, and resets a connection if told to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.heard = b""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.heard += data
                    if data == RESET:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(echo.address).start()
    yield proxy
    proxy.stop()


@pytest.fixture
def client(proxy: FaultyProxy) -> Iterator[socket.socket]:
    with connect(proxy) as client:
        yield client


def connect(proxy: FaultyProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def say(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(65536)


def assert_silent(client: socket.socket) -> None:
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(5)


def test_passes_bytes_both_ways_and_counts_them(client, proxy):
    assert say(client, b"hello") == b"hello"
    wait_until(lambda: proxy.counts["down_bytes"] == 5, 5)
    assert (proxy.counts["connections"], proxy.counts["up_bytes"]) == (1, 5)


def test_an_end_of_file_passes(client, echo):
    say(client, b"last words")
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def test_latency_is_added_in_each_direction(client, proxy):
    say(client, b"warm")
    proxy.slow(latency=0.1, jitter=0.01)
    began = time.monotonic()
    say(client, b"slow")
    assert time.monotonic() - began >= 0.2


def test_bandwidth_is_bounded(client, proxy):
    proxy.slow(bytes_per_second=100_000)
    began, left = time.monotonic(), 50_000
    client.sendall(b"x" * left)
    while left:
        left -= len(client.recv(65536))
    assert time.monotonic() - began >= 0.25


def test_a_partition_holds_what_was_said_and_delivers_it_when_it_heals(client, proxy, echo):
    say(client, b"before")
    proxy.block("up", "down")
    client.sendall(b"during")
    assert_silent(client)
    wait_until(lambda: proxy.counts["up_held"] == 6, 5)
    assert echo.heard == b"before"
    proxy.heal()
    assert client.recv(65536) == b"during"


def test_deaf_the_server_hears_and_the_client_does_not(client, proxy, echo):
    say(client, b"before")
    proxy.block("down")
    client.sendall(b" during")
    assert_silent(client)
    wait_until(lambda: proxy.counts["down_held"] == 7, 5)
    assert echo.heard == b"before during"


def test_mute_the_server_hears_nothing(client, proxy, echo):
    proxy.block("up")
    client.sendall(b"during")
    assert_silent(client)
    assert echo.heard == b""


def test_an_end_of_file_does_not_pass_a_partition(client, proxy, echo):
    say(client, b"before")
    proxy.block("up", "down")
    client.shutdown(socket.SHUT_WR)
    assert_silent(client)
    proxy.heal()
    assert client.recv(1) == b""


def test_reset_is_an_error_and_no_end(client, proxy):
    say(client, b"before")
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with connect(proxy) as another:
        assert say(another, b"after") == b"after"


def test_a_reset_by_the_server_reaches_the_client(client):
    say(client, b"before")
    client.sendall(RESET)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_refused_connections_come_back_on_the_same_port(client, proxy):
    say(client, b"before")
    port = proxy.port
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    assert proxy.port == port
    with connect(proxy) as another:
        assert say(another, b"after") == b"after"


def test_cut_on_a_pattern_after_the_server_has_it(client, proxy, echo):
    say(client, b"BEGIN")
    proxy.cut_on(b"COMMIT")
    assert say(client, b"INSERT") == b"INSERT"
    client.sendall(b"COMMIT")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert echo.heard == b"BEGININSERTCOMMIT"
    assert proxy.counts["cuts"] == 1
    with connect(proxy) as another:
        assert say(another, b"COMMIT") == b"COMMIT"


def test_swallow_what_the_server_has_sent(client, proxy, echo):
    say(client, b"before")
    proxy.swallow(b"message")
    client.sendall(b"a message")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert echo.heard == b"beforea message"
    assert proxy.counts["swallowed"] == 1


def test_cut_after_so_many_bytes(client, proxy):
    say(client, b"before")
    proxy.cut_after(10)
    assert say(client, b"12345") == b"12345"
    client.sendall(b"67890x")
    with pytest.raises(ConnectionResetError):
        client.recv(65536)


def test_a_server_that_is_away_is_an_end(proxy, echo):
    echo.close()
    with connect(proxy) as client:
        assert client.recv(1) == b""


def test_a_unix_socket_upstream(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        proxy = FaultyProxy(path).start()
        with connect(proxy) as client:
            client.sendall(b"over")
            served, _ = listener.accept()
            with served:
                assert served.recv(10) == b"over"
        proxy.stop()
