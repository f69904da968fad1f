"""A scheduler process: the product's leader, with its loop turned into events, and without its threads."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import redis
from sqlalchemy.exc import DBAPIError

from broker.scheduler.inbox import BATCH, SOURCES, Batch, Inbox, processing_list
from broker.scheduler.leader import Leader
from cyxwiz_tasks.errors import NotLeader, ServerUnavailable
from cyxwiz_tasks.settings import Settings
from tests.simulation.fake_postgres import FakePostgres
from tests.simulation.fake_redis import FakeClient, FakeRedis
from tests.simulation.world import Broken, World

#: between two steps while nothing arrives: sources wait so long in Redis, a slow machine takes longer
STEP_SECONDS = 0.25, 2.0
#: one source's messages may come a step later than those of another
LATE_SOURCE = 0.1


class Killed(BaseException):
    """The process is dead: nothing of it runs any more, not even a `finally` that talks to a server."""


class Blocked(BaseException):
    """The loop waits, and goes on with what it was doing."""


class Waits:
    """The loop's `stop`."""

    def is_set(self) -> bool:
        return False

    def wait(self, seconds: float) -> NoReturn:
        raise Blocked


class EventInbox(Inbox):
    """Takes what is there when it is asked, instead of waiting for it in threads."""

    world: World
    client: FakeClient
    #: something has kept its sources from asking since the last look
    disturbed = False

    def start(self) -> None:
        self._answered()

    def stop(self) -> None:
        """There is nothing to stop."""

    def take(self, timeout_seconds: float, limit: int = 2 * BATCH) -> list[Batch]:
        server = self.client.reach()
        self._answered()
        batches = []
        for source in SOURCES:
            if server.lists.get(source) and not self.world.happens(LATE_SOURCE):
                messages = server.drain([source, processing_list(self.epoch, source)], [BATCH])
                batches.append(self._read(source, messages))
        return batches

    def unanswered_seconds(self) -> float:
        longest = super().unanswered_seconds()
        disturbed, self.disturbed = self.disturbed, False
        return longest if disturbed else min(longest, STEP_SECONDS[0])


class SimScheduler:
    def __init__(self, name: str, world: World, settings: Settings, server: FakeRedis, postgres: FakePostgres) -> None:
        self.name, self.world, self.settings, self.server, self.postgres = name, world, settings, server, postgres
        self.linked, self.frozen, self.dead = True, False, True
        #: its code runs right now
        self.running = False
        self.leader: Leader | None = None
        #: what is to be done at which failpoint: None dies there, a number stands still for so many seconds
        self.armed: dict[str, float | None] = {}
        self.answers_to_lose = 0
        self._life = 0
        self._wake_at = 0.0
        self._blocked = False

    # The process ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.dead:
            self.dead, self._life = False, self._life + 1
            self._stand_by(self._life)

    def kill(self) -> None:
        self.world.say(self.name, "killed")
        self.dead, self.leader, self._life = True, None, self._life + 1
        self.armed.clear()
        self.world.after(self.world.between(0.5, 8.0), self.start)

    def freeze(self, seconds: float) -> None:
        """Stand still between two steps."""
        if not self.frozen:
            self.world.say(self.name, "frozen", seconds=round(seconds, 1))
            self.frozen = True
            self.world.after(seconds, self._thaw)

    def _thaw(self) -> None:
        self.frozen = False
        self.disturb()
        self.world.say(self.name, "thawed")

    def link(self) -> None:
        self.linked = True
        self.disturb()

    def disturb(self) -> None:
        if self.leader is not None:
            self.leader.inbox.disturbed = True  # type: ignore[attr-defined]

    def strike(self, point: str) -> None:
        """A failpoint is passed."""
        if point in self.armed:
            seconds = self.armed.pop(point)
            self.world.say(self.name, "failpoint", at=point)
            if seconds is None:
                raise Killed
            # In the middle of what it does: the world goes on around it.
            life, self.running = self._life, False
            self.freeze(seconds)
            self.world.run_until(self.world.now + seconds + 0.001)
            self.running = True
            if life != self._life:
                raise Killed

    # Its loop -------------------------------------------------------------------------------------------------------

    def arrived(self) -> None:
        """Something lies in a list that a leader waits for."""
        if self.leader is not None and self._wake_at > self.world.now + 0.01:
            self._wake_in(0.005)

    def _stand_by(self, life: int) -> None:
        if life != self._life:
            return
        if not self.frozen and (leadership := self.postgres.try_lead(lambda: life == self._life)) is not None:
            self.world.say(self.name, "leads", epoch=leadership.epoch)
            self._run(lambda: self._begin(leadership))
        else:
            self.world.after(self.world.between(0.2, 1.0), self._stand_by, life)

    def _begin(self, leadership: Any) -> None:
        engine: Any = self.postgres
        app: Any = None
        leader = Leader(self.settings, engine, self._connect, app, leadership)
        inbox = EventInbox(self._connect, leadership.epoch, leader.inbox.readers)
        inbox.world, inbox.client = self.world, self._connect()
        leader.inbox, leader._connection = inbox, engine
        self.leader = leader
        leader.load()
        leader._connect_sources(Waits())  # type: ignore[arg-type]
        leader._or_reconnect(leader._do_duties, Waits())  # type: ignore[arg-type]

    def _connect(self) -> Any:
        return FakeClient(self.server, lambda: self.linked, self._loses_answer)

    def _loses_answer(self) -> bool:
        self.answers_to_lose -= 1
        return self.answers_to_lose == 0

    def _wake_in(self, seconds: float) -> None:
        self._wake_at = self.world.now + seconds
        self.world.after(seconds, self._wake, self._life, self._wake_at)

    def _wake(self, life: int, at: float) -> None:
        if life != self._life or at != self._wake_at or self.leader is None:
            return
        if self.frozen:
            self._wake_in(0.5)
            return
        self._run(self._step)

    def _step(self) -> None:
        assert self.leader is not None
        if self._blocked:
            self.leader._connect_sources(Waits())  # type: ignore[arg-type]
            self._blocked = False
        self.leader._or_reconnect(self.leader.step, Waits())  # type: ignore[arg-type]

    def _run(self, do: Callable[[], None]) -> None:
        """Do one thing, and meet its end as `broker.scheduler.command` does."""
        life, self.running = self._life, True
        try:
            do()
        except Killed:
            if life == self._life:
                self.kill()
        except Blocked:
            self._blocked = True
            self._wake_in(self.world.between(0.05, 1.0))
        except (DBAPIError, NotLeader, ServerUnavailable) as error:
            self._end_term(error)
            self.world.after(self.world.between(0.1, 1.0), self._stand_by, self._life)
        except Exception as error:
            raise Broken(f"{self.name} failed: {error!r}\n{traceback.format_exc()}") from error
        else:
            self._wake_in(self.world.between(*STEP_SECONDS))
        finally:
            self.running = False

    def _end_term(self, error: Exception) -> None:
        self.world.say(self.name, "term over", error=type(error).__name__)
        leader, self.leader, self._blocked = self.leader, None, False
        if leader is not None:
            with suppress(redis.RedisError):
                leader.inbox.give_back(leader.redis, own=True)
            leader.leadership.release()
