"""A TCP proxy that breaks connections on request, each direction by itself, and counts what it broke.

What a real network would retransmit after a partition is held back here and delivered when the partition heals: a
connection through it is half-open meanwhile, no FIN passes, and whoever gave up waiting has closed his end by then.
All proxies of a process share one thread; every method may be called from any other thread.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

#: host and port, or the path of a unix socket
Address = tuple[str, int] | str
Way = Literal["up", "down"]

_CHUNK_BYTES = 32 * 1024
#: chunks of one direction that may be under way; more wait in the sender's socket
_QUEUED_CHUNKS = 64
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Rules:
    """What one direction does to bytes. Times are seconds."""

    latency: float = 0.0
    #: at most so much more than `latency`, by chance
    jitter: float = 0.0
    bytes_per_second: float | None = None
    #: nothing passes, and nobody is told
    blocked: bool = False


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    #: the answer that comes next is swallowed
    doomed: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class FaultyProxy:
    """Listens on a port of 127.0.0.1 and forwards to `upstream`. Use `start()` and `stop()`."""

    _loop: asyncio.AbstractEventLoop | None = None
    _starting = threading.Lock()

    def __init__(self, upstream: Address) -> None:
        self.upstream = upstream
        self.up, self.down = Rules(), Rules()
        self.port = 0
        #: connections, up_bytes, down_bytes, up_held, down_held, resets, refused, cuts, swallowed
        self.counts: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._cut_pattern: bytes | None = None
        self._swallowed_pattern: bytes | None = None
        #: bytes that may still come down to a connection before it is reset
        self._limits: dict[_Connection, int] = {}
        self._released: asyncio.Event | None = None

    # Control, from any thread ---------------------------------------------------------------------------------

    def start(self) -> FaultyProxy:
        self._do(self._listen())
        return self

    def stop(self) -> None:
        self._do(self._close())

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def block(self, *ways: Way) -> None:
        """Let nothing pass in these directions."""
        self._do(self._set({way: {"blocked": True} for way in ways}))

    def slow(self, *, latency: float = 0.0, jitter: float = 0.0, bytes_per_second: float | None = None) -> None:
        """Both directions, from the next chunk on."""
        rules = {"latency": latency, "jitter": jitter, "bytes_per_second": bytes_per_second}
        self._do(self._set({"up": rules, "down": rules}))

    def reset(self) -> int:
        """RST to both ends of every connection; how many there were."""
        return int(self._do(self._reset_all()))

    def refuse(self) -> None:
        """Reset what there is and refuse new connections, as a server that does not listen."""
        self._do(self._stop_listening())

    def cut_on(self, pattern: bytes) -> None:
        """Forward the next bytes upwards that hold `pattern`, swallow the answer to them, and reset the connection.

        So the server has done what the client never hears of: `counts["cuts"]` rises when it happened.
        """
        self._do(self._arm_up(pattern))

    def swallow(self, pattern: bytes) -> None:
        """Drop the next bytes downwards that hold `pattern`, and reset the connection: the server has sent them.

        `counts["swallowed"]` rises when it happened.
        """
        self._do(self._arm_down(pattern))

    def cut_after(self, down_bytes: int) -> None:
        """Reset each connection that there is once so many more bytes came down to its client."""
        self._do(self._limit(down_bytes))

    def heal(self) -> None:
        """As it was at the start. What was held back is delivered."""
        self._do(self._heal())

    # In the proxies' thread -----------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._shared_loop()).result(10)

    @classmethod
    def _shared_loop(cls) -> asyncio.AbstractEventLoop:
        with FaultyProxy._starting:
            if FaultyProxy._loop is None:
                FaultyProxy._loop = asyncio.new_event_loop()
                threading.Thread(target=FaultyProxy._loop.run_forever, name="proxies", daemon=True).start()
        return FaultyProxy._loop

    async def _listen(self) -> None:
        self._released = self._released or asyncio.Event()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.counts["refused"] += 1
        await self._reset_all()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._heal(listen=False)
        await self._reset_all()

    async def _set(self, rules: dict[Way, dict[str, Any]]) -> None:
        for way, values in rules.items():
            for name, value in values.items():
                setattr(getattr(self, way), name, value)

    async def _arm_up(self, pattern: bytes) -> None:
        self._cut_pattern = pattern

    async def _arm_down(self, pattern: bytes) -> None:
        self._swallowed_pattern = pattern

    async def _limit(self, down_bytes: int) -> None:
        self._limits = dict.fromkeys(self._connections, down_bytes)

    async def _heal(self, *, listen: bool = True) -> None:
        self.up, self.down, self._limits = Rules(), Rules(), {}
        self._cut_pattern = self._swallowed_pattern = None
        if listen and self._server is None:
            await self._listen()
        if self._released is not None:
            self._released.set()
            self._released = asyncio.Event()

    async def _reset_all(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            self._reset(connection)
        return len(connections)

    def _reset(self, connection: _Connection) -> None:
        self.counts["resets"] += 1
        for writer in (connection.client, connection.server):
            raw = writer.get_extra_info("socket")
            with suppress(OSError, AttributeError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            writer.transport.abort()
        self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        current = asyncio.current_task()
        for task in connection.tasks:
            if task is not current:
                task.cancel()

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        try:
            from_server, to_server = await self._connect()
        except OSError:
            to_client.transport.abort()
            return
        connection = _Connection(to_client, to_server)
        self._connections.add(connection)
        connection.tasks = [
            asyncio.ensure_future(self._carry("up", from_client, to_server, connection)),
            asyncio.ensure_future(self._carry("down", from_server, to_client, connection)),
        ]
        with suppress(asyncio.CancelledError):
            await asyncio.wait(connection.tasks)
        self._forget(connection)
        for writer in (to_client, to_server):
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, str):
            return await asyncio.open_unix_connection(self.upstream, limit=_CHUNK_BYTES)
        return await asyncio.open_connection(*self.upstream, limit=_CHUNK_BYTES)

    async def _carry(
        self, way: Way, source: asyncio.StreamReader, target: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        """Bytes of one direction, until its end; an end is passed on as an end."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_CHUNKS)
        deliverer = asyncio.ensure_future(self._deliver(way, queue, target, connection))
        connection.tasks.append(deliverer)
        clock = asyncio.get_running_loop().time
        try:
            while data := await self._read(way, source, connection):
                rules: Rules = getattr(self, way)
                delay = rules.latency + rules.jitter * random.random()
                await queue.put((clock() + delay, data))
            await queue.put((clock(), b""))
            await deliverer
        except asyncio.CancelledError:
            deliverer.cancel()

    async def _read(self, way: Way, source: asyncio.StreamReader, connection: _Connection) -> bytes:
        try:
            return await source.read(_CHUNK_BYTES)
        except OSError:
            # One end reset it, and the other one hears of it once anything passes.
            await self._until_open(way, 0)
            self._reset(connection)
            return b""

    async def _deliver(
        self, way: Way, queue: asyncio.Queue[tuple[float, bytes]], target: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        clock = asyncio.get_running_loop().time
        with suppress(OSError):
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - clock()))
                await self._until_open(way, len(data))
                if not data:
                    if target.can_write_eof():
                        target.write_eof()
                    return
                if way == "down" and self._breaks(connection, data):
                    self._reset(connection)
                    return
                if way == "up" and self._cut_pattern is not None and self._cut_pattern in data:
                    self._cut_pattern, connection.doomed = None, True
                target.write(data)
                await target.drain()
                self.counts[f"{way}_bytes"] += len(data)
                if (rate := getattr(self, way).bytes_per_second) is not None:
                    await asyncio.sleep(len(data) / rate)

    def _breaks(self, connection: _Connection, data: bytes) -> bool:
        """Whether the connection is reset instead of getting these bytes."""
        if self._swallowed_pattern is not None and self._swallowed_pattern in data:
            self._swallowed_pattern = None
            self.counts["swallowed"] += 1
            return True
        if connection.doomed:
            self.counts["cuts"] += 1
            return True
        if connection in self._limits:
            self._limits[connection] -= len(data)
            if self._limits[connection] < 0:
                self.counts["cuts"] += 1
                return True
        return False

    async def _until_open(self, way: Way, count: int) -> None:
        if getattr(self, way).blocked:
            self.counts[f"{way}_held"] += max(count, 1)
        while getattr(self, way).blocked:
            assert self._released is not None
            await self._released.wait()


def counted(proxy: FaultyProxy, *names: str) -> Callable[[], dict[str, int]]:
    """How much these counts have risen since now."""
    before = {name: proxy.counts[name] for name in names}
    return lambda: {name: proxy.counts[name] - before[name] for name in names}
