"""A Redis in memory, with the commands that the scheduler uses. Its scripts are equal Python, found by their text."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any, Self

import redis

from broker.scheduler import inbox, outbox
from broker.scheduler.duties import late_nodes, untold
from cyxwiz_tasks.protocol.names import BEATS, reply_key
from tests.simulation.clock import WALL_SECONDS
from tests.simulation.world import Unsimulated, World

_REPLY = reply_key("")


def _b(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


class FakeRedis:
    """The server. Lists have their left end first."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.up = True
        self.clock_skew_seconds = 0.0
        self.lists: dict[str, deque[bytes]] = defaultdict(deque)
        self.beats: dict[str, float] = {}
        #: texts with the moment at which they expire
        self.texts: dict[str, tuple[bytes, float]] = {}
        #: called with the key of a list that something was pushed to
        self.pushed: Callable[[str], None] = lambda key: None
        #: by key of an answer, who waits for it
        self.replies: dict[str, Callable[[bytes], None]] = {}
        #: makes the beats up to now of nodes that are well
        self.beat: Callable[[], None] = lambda: None
        #: connections of nodes: a number of each, and whose it is
        self.connected: Callable[[], list[tuple[int, str]]] = list
        #: called with each command that a scheduler says
        self.said: Callable[[Sequence[Any]], None] = lambda command: None

    def time(self) -> float:
        return WALL_SECONDS + self.world.now + self.clock_skew_seconds

    def flush(self) -> None:
        for table in (self.lists, self.beats, self.texts):
            table.clear()

    # Commands -------------------------------------------------------------------------------------------------------

    def lpush(self, key: str, *values: Any) -> int:
        if key.startswith(_REPLY):
            waits = self.replies.pop(key, None)
            if waits is not None:
                waits(_b(values[0]))
            return 1
        self.lists[key].extendleft(_b(value) for value in values)
        self.pushed(key)
        return len(self.lists[key])

    def rpop(self, key: str, count: int) -> list[bytes]:
        items = self.lists.get(key)
        return [items.pop() for _ in range(min(count, len(items)))] if items else []

    def set(self, key: str, value: Any, ttl_seconds: float, *, only_if_none: bool = False) -> None:
        if not only_if_none or self.get(key) is None:
            self.texts[key] = _b(value), self.world.now + ttl_seconds

    def get(self, key: str) -> bytes | None:
        value, until = self.texts.get(key, (None, 0.0))
        return value if until > self.world.now else None

    def command(self, name: str, *arguments: Any) -> Any:
        match name, arguments:
            case "LPUSH", (key, *values):
                return self.lpush(key, *values)
            case "LTRIM", (key, start, stop):
                self.lists[key] = deque(list(self.lists[key])[int(start) : int(stop) + 1 or None])
            case "ZREM", (str(key), node_id) if key == BEATS:
                self.beats.pop(node_id, None)
            case "DEL", (key,):
                self.lists.pop(key, None)
            case (("EXPIRE" | "XADD"), _):
                pass  # answers are read at once, and nobody here reads progress
            case _:
                raise Unsimulated(f"Redis command {name} {arguments}")
        return 1

    # Scripts --------------------------------------------------------------------------------------------------------

    def say(self, keys: list[str], args: list[Any]) -> bytes | None:
        if int(self.get(keys[0]) or 0) > args[0]:
            return outbox.FENCED
        at = 1
        while at < len(args):
            last = at + int(args[at])
            command = args[at + 1 : last + 1]
            self.said(command)
            name, key, *rest = command
            if name in ("STATE", "STATE_IF_NONE"):
                self.set(key, rest[-1], float(rest[0]), only_if_none=name == "STATE_IF_NONE")
            elif name == "STATES":
                for job_id in rest[3:]:
                    self.set(f"{key}{job_id}", f"{rest[1]}{job_id}{rest[2]}", float(rest[0]))
            else:
                self.command(*command)
            at = last + 1
        return None

    def beat_of(self, keys: list[str], args: list[Any]) -> int:
        self.beats[args[0]] = self.time()
        return 1

    def late(self, keys: list[str], args: list[Any]) -> list[Any]:
        self.beat()
        now = self.time()
        late = [part for id, at in self.beats.items() if at < now - args[0] for part in (_b(id), b"%.6f" % at)]
        return [b"%.6f" % now, len(self.beats), late]

    def drain(self, keys: list[str], args: list[Any]) -> list[bytes]:
        taken = self.rpop(keys[0], int(args[0]))
        self.lists[keys[1]].extendleft(taken)
        return taken

    def lead(self, keys: list[str], args: list[Any]) -> int:
        leads = self.get(keys[0])
        if leads is not None and int(leads) > args[0]:
            return -int(leads)
        self.set(keys[0], args[0], math.inf)
        return leads is None

    def give_back(self, keys: list[str], args: list[Any]) -> int:
        moved = 0
        for epoch in range(args[0], args[1] + 1):
            for number, source in enumerate(args[2:]):
                taken = self.lists.pop(f"{keys[0]}.{epoch}.{number}", ())
                for message in taken:
                    self.lists[source].append(message)
                if taken:
                    self.pushed(source)
                moved += len(taken)
        return moved

    def forget(self, keys: list[str], args: list[Any]) -> int:
        items, first, last, count = self.lists[keys[0]], args[0], args[1], int(args[2])
        if len(items) < count or items[-1] != first or items[-count] != last:
            return 0
        for _ in range(count):
            items.pop()
        return 1

    def unsaid(self, keys: list[str], args: list[Any]) -> list[bytes]:
        return [_b(id) for id in args if not is_final(self.get(f"{keys[0]}{id}"))]


def is_final(state: bytes | None) -> bool:
    """Whether a text of Celery's result backend says how a job ended."""
    return state is not None and any(word in state[:41] for word in (b'"SUCCESS"', b'"FAILURE"', b'"REVOKED"'))


_SCRIPTS: dict[str, Callable[[FakeRedis, list[str], list[Any]], Any]] = {
    inbox._DRAIN: FakeRedis.drain,
    inbox._LEAD: FakeRedis.lead,
    inbox._GIVE_BACK: FakeRedis.give_back,
    inbox._FORGET: FakeRedis.forget,
    outbox._SAY: FakeRedis.say,
    outbox._BEAT: FakeRedis.beat_of,
    late_nodes._ASK: FakeRedis.late,
    untold._UNSAID: FakeRedis.unsaid,
}


class FakeClient:
    """A connection of one process. `linked` says whether its packets arrive; some answers get lost."""

    def __init__(self, server: FakeRedis, linked: Callable[[], bool], loses_answer: Callable[[], bool]) -> None:
        self.server, self.linked, self.loses_answer = server, linked, loses_answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held."""

    def reach(self) -> FakeRedis:
        """Raises redis.ConnectionError."""
        if not (self.server.up and self.linked()):
            raise redis.ConnectionError("simulated: no connection")
        return self.server

    def eval(self, script: str, keys: int, *words: Any) -> Any:
        server = self.reach()
        if script not in _SCRIPTS:
            raise Unsimulated(f"a script without a twin in Python: {script}")
        named = [key.decode() if isinstance(key, bytes) else key for key in words[:keys]]
        return _SCRIPTS[script](server, named, list(words[keys:]))

    def scan(self, cursor: int, pattern: str, count: int) -> tuple[int, list[bytes]]:
        server = self.reach()
        return 0, [_b(key) for key, items in server.lists.items() if items and fnmatch(key, pattern)]

    def lrange(self, key: str, start: int, stop: int) -> list[bytes]:
        return list(self.reach().lists.get(key, ()))

    def lrem(self, key: str, count: int, value: bytes) -> int:
        items = self.reach().lists[key]
        found = value in items
        if found:
            items.remove(value)
        return found

    def delete(self, *keys: str) -> int:
        server = self.reach()
        return sum(bool(server.lists.pop(key, ())) for key in keys)

    def zscore(self, key: str, node_id: str) -> float | None:
        server = self.reach()
        server.beat()
        return server.beats.get(node_id)

    @property
    def connection_pool(self) -> Self:
        return self

    def disconnect(self) -> None:
        """Nothing is held."""

    def lpush(self, key: str, *values: Any) -> int:
        return self.reach().lpush(key, *values)

    def zrange(self, key: str, start: int, stop: int, *, withscores: bool) -> list[tuple[bytes, float]]:
        server = self.reach()
        assert key == BEATS
        server.beat()
        return [(_b(node_id), at) for node_id, at in server.beats.items()]

    def zadd(self, key: str, members: dict[str, float], *, nx: bool) -> None:
        server = self.reach()
        assert key == BEATS
        assert nx
        for node_id, at in members.items():
            server.beats.setdefault(node_id, at)

    def zrem(self, key: str, node_id: str) -> None:
        self.reach().beats.pop(node_id, None)

    def mget(self, keys: list[str]) -> list[bytes | None]:
        server = self.reach()
        return [server.get(key) for key in keys]

    def execute_command(self, *words: str) -> bytes:
        server = self.reach()
        if words[:2] != ("CLIENT", "LIST"):
            raise Unsimulated(f"Redis command {words}")
        wanted = None if words[2] == "TYPE" else set(words[3:])
        there = [(number, id) for number, id in server.connected() if wanted is None or str(number) in wanted]
        return b"".join(b"id=%d name=cyxwiz-heartbeat-%s age=1\n" % (number, _b(id)) for number, id in there)

    def pipeline(self, transaction: bool) -> FakePipeline:
        assert not transaction
        return FakePipeline(self)

    def __getattr__(self, name: str) -> Any:
        raise Unsimulated(f"Redis command {name}")


class FakePipeline:
    def __init__(self, client: FakeClient) -> None:
        self.client = client
        self.commands: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def eval(self, *words: Any) -> None:
        self.commands.append((self.client.eval, words))

    def llen(self, key: str) -> None:
        self.commands.append((lambda: len(self.client.reach().lists.get(key, ())), ()))

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        answers = [command(*words) for command, words in self.commands]
        if self.commands and self.client.loses_answer():
            raise redis.TimeoutError("simulated: the answer is lost")
        return answers
