"""Links that are slow, thin, cut, or cut in one direction alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from tests.chaos.faults.fault import LONG, PATIENCE_SECONDS, SHORT, Fault
from tests.chaos.faulty_proxy import FaultyProxy, Way, counted
from tests.chaos.schedule import Kind


class _OnLink(Fault):
    """Breaks one proxy, and takes its counters for a proof."""

    #: of the proxy's counters, those of which one must rise
    counters: ClassVar[tuple[str, ...]]
    proxy: FaultyProxy | None = None

    def link(self) -> FaultyProxy | None:
        return self.node.proxies["redis"] if self.node_at_work() else None

    def break_it(self, proxy: FaultyProxy) -> None:
        raise NotImplementedError

    def inject(self) -> None:
        self.proxy = self.link()
        if self.proxy is not None:
            self._risen = counted(self.proxy, *self.counters)
            self.break_it(self.proxy)

    def heal(self) -> None:
        if self.proxy is not None:
            risen = {name: count for name, count in self._risen().items() if count}
            self.proxy.heal()
            self.proof = risen


class SlowLink(_OnLink):
    kind = Kind("slow_link", "node", (3.0, 8.0))
    counters = ("up_bytes", "down_bytes")

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.slow(latency=0.3, jitter=0.7)


class ThinLink(_OnLink):
    """56 kbit/s."""

    kind = Kind("thin_link", "node", (3.0, 8.0))
    counters = ("up_bytes", "down_bytes")

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.slow(bytes_per_second=7_000)


class Resets(_OnLink):
    kind = Kind("link_reset_burst", "node", (0.1, 0.1))
    counters = ("resets",)

    def break_it(self, proxy: FaultyProxy) -> None:
        for _ in range(3):
            proxy.reset()
            self.wait(0.7)


class Refused(_OnLink):
    kind = Kind("link_refused", "node", (0.5, 4.0))
    counters = ("refused",)

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.refuse()


class _Blocked(_OnLink):
    ways: ClassVar[tuple[Way, ...]]

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.block(*self.ways)


class PartitionBriefly(_Blocked):
    kind = Kind("partition_briefly", "node", SHORT)
    ways, counters = ("up", "down"), ("up_held", "down_held")


class Partition(_Blocked):
    kind = Kind("partition", "node", LONG)
    ways, counters = ("up", "down"), ("up_held", "down_held")


class Deaf(_Blocked):
    """The node is heard and hears nothing."""

    kind = Kind("node_deaf", "node", LONG)
    ways, counters = ("down",), ("down_held",)


class Mute(_Blocked):
    """The node hears and is not heard."""

    kind = Kind("node_mute", "node", LONG)
    ways, counters = ("up",), ("up_held",)


class CutInAnswer(_OnLink):
    """Connections end in the middle of an answer from Redis."""

    kind = Kind("link_cut_in_answer", "node", (1.0, 2.0))
    counters = ("cuts",)

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.cut_after(self.planned.choice % 200)


class _OfLeader(_OnLink):
    to: ClassVar[str]

    def link(self) -> FaultyProxy | None:
        self.until(lambda: self.stack.leader() is not None, PATIENCE_SECONDS)
        leader = self.stack.leader()
        return None if leader is None else leader.proxies[self.to]


class LeaderWithoutRedis(_OfLeader):
    kind = Kind("leader_without_redis", "scheduler", (2.0, 8.0))
    to, counters = "redis", ("up_held", "down_held")

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.block("up", "down")


class LeaderRedisResets(_OfLeader):
    kind = Kind("leader_redis_reset", "scheduler", (0.1, 0.1))
    to, counters = "redis", ("resets",)

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.reset()


class LeaderCutInAnswer(_OfLeader):
    """Redis has done what the leader asked, and the leader does not hear of it."""

    kind = Kind("leader_redis_cut_in_answer", "scheduler", (1.0, 2.0))
    to, counters = "redis", ("cuts",)

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.cut_after(self.planned.choice % 100)


class LeaderWithoutPostgres(_OfLeader):
    """Its sessions stay open at the server's end, and so does its lock, until the server's patience is over."""

    kind = Kind("leader_without_postgres", "scheduler", (3.0, 14.0), needs=("postgres",))
    to, counters = "postgres", ("up_held", "down_held")

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.block("up", "down")


class UnknownCommit(_OfLeader):
    """The COMMIT is done, and its answer never comes."""

    kind = Kind("unknown_commit", "scheduler", (2.0, 3.0), needs=("postgres",))
    to, counters = "postgres", ("cuts",)

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.cut_on(b"COMMIT")
        self.until(lambda: self._risen()["cuts"], PATIENCE_SECONDS)


class ClientResets(_OnLink):
    kind = Kind("client_link_reset", "client", (0.1, 0.1))
    counters = ("resets",)

    def link(self) -> FaultyProxy | None:
        return self.stack.client_proxy

    def break_it(self, proxy: FaultyProxy) -> None:
        proxy.reset()


def _all() -> Iterable[type[Fault]]:
    yield from (SlowLink, ThinLink, Resets, Refused, PartitionBriefly, Partition, Deaf, Mute, CutInAnswer)
    yield from (LeaderWithoutRedis, LeaderRedisResets, LeaderCutInAnswer, LeaderWithoutPostgres, UnknownCommit)
    yield ClientResets


KINDS: tuple[type[Fault], ...] = tuple(_all())
