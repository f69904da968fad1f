"""One term of leadership: the loop.

    take what has arrived -> one transaction: record it, place what fits -> one pipeline: tell everybody -> forget it

Everything is single-threaded except the sources (`inbox`), the listener for Celery's broadcasts (`revokes`) and read
queries (`queries`). A crash at any point loses nothing: what was taken and not forgotten is taken again and handled
again, and every handler is idempotent; what was committed and not published is published again by a duty.

Redis away: the term goes on when it is back. PostgreSQL away: the term ends, and the next one reads the record anew.
"""

from __future__ import annotations

import gc
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import redis
from celery import Celery
from sqlalchemy import Connection, Engine

from broker.scheduler import (
    accepting,
    commands,
    gang_ends,
    gang_members,
    placing,
    preempting,
    reports,
    setting_aside,
    unblocking,
)
from broker.scheduler.duties.chord_parts import ChordParts
from broker.scheduler.duties.consolidate import Consolidate
from broker.scheduler.duties.drains import Drains
from broker.scheduler.duties.duty import Duty
from broker.scheduler.duties.early_stopping import EarlyStopping
from broker.scheduler.duties.expired_jobs import ExpiredJobs
from broker.scheduler.duties.ghosts import Ghosts
from broker.scheduler.duties.give_back import GiveBack
from broker.scheduler.duties.late_nodes import LateNodes
from broker.scheduler.duties.leases import Leases
from broker.scheduler.duties.open_nodes import OpenNodes
from broker.scheduler.duties.overdue_jobs import OverdueJobs
from broker.scheduler.duties.preempt import Preempt
from broker.scheduler.duties.processing_lists import ProcessingLists
from broker.scheduler.duties.prune import Prune
from broker.scheduler.duties.quarantine import Quarantine
from broker.scheduler.duties.readings import Readings
from broker.scheduler.duties.reconcile import Reconcile
from broker.scheduler.duties.reserve import Reserve
from broker.scheduler.duties.schedules import Schedules
from broker.scheduler.duties.unstarted import Unstarted
from broker.scheduler.duties.untold import Untold
from broker.scheduler.duties.usage import Usage
from broker.scheduler.failures import is_momentary, is_poison, where
from broker.scheduler.hindrance import Growing
from broker.scheduler.inbox import INBOX_LISTS, Batch, Inbox
from broker.scheduler.keeper import Keeper
from broker.scheduler.limits import OwnerLimits
from broker.scheduler.log_lines import line
from broker.scheduler.memory import Memory
from broker.scheduler.outbox import FENCED, Outbox
from broker.scheduler.parking import Parked, PlacingFailed, blaming
from broker.scheduler.placing_at_once import place_at_once
from broker.scheduler.revokes import RevokeListener
from broker.scheduler.telling import tell
from broker.scheduler.turn import Turn
from cyxwiz_tasks import failpoints
from cyxwiz_tasks.errors import NotLeader, ServerUnavailable
from cyxwiz_tasks.protocol.names import COMMANDS, REPORTS
from cyxwiz_tasks.settings import Settings
from db.fenced import fenced, fenced_connection, fences_itself
from db.leadership import Leadership, assert_current, go_beyond
from db.models import NodeState

log = logging.getLogger(__name__)

#: in the order in which they run: who is late is known before anything is placed, and how old checkpoints are before
#: anybody is asked to go
DUTIES: tuple[type[Duty], ...] = (
    LateNodes,
    OpenNodes,
    ExpiredJobs,
    OverdueJobs,
    Schedules,
    ProcessingLists,
    Unstarted,
    Leases,
    Drains,
    Reconcile,
    Preempt,
    GiveBack,
    Reserve,
    Consolidate,
    EarlyStopping,
    Quarantine,
    Usage,
    Untold,
    ChordParts,
    Readings,
    Ghosts,
    Prune,
)
_RETRY_FIRST_SECONDS, _RETRY_CAP_SECONDS = 0.05, 1.0
#: how often one turn is tried before its messages are handled one by one, or the term ends
_TURN_TRIES = 4
#: after a failure that no message is to blame for, before anything is tried again
_FAILURE_PAUSE_SECONDS = 1.0
#: after placement failed for nobody knows whom, or for so many kinds of jobs one after the other that it is not theirs,
#: before it is tried again
_PLACING_PAUSE_SECONDS = 5.0
_PARKED_AT_ONCE = 3
#: each failure reads the record anew, which is to take this share of the time at most
_LOADING_SHARE = 0.1
#: the listener for broadcasts may wait for a Redis that does not answer
_LISTENER_SECONDS = 2.0


class Leader:
    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        connect: Callable[[], redis.Redis],
        app: Celery,
        leadership: Leadership,
    ) -> None:
        self.settings, self.engine, self.connect, self.app, self.leadership = settings, engine, connect, app, leadership
        self.redis = connect()
        self.inbox = Inbox(connect, leadership.epoch, dict.fromkeys(INBOX_LISTS, accepting.prepare))
        self._parked = Parked()
        self.memory = _memory(settings, self._parked)
        self.duties: list[Duty] = [duty(self) for duty in DUTIES]
        self._due = [0.0] * len(self.duties)
        self._unsent: tuple[Outbox, Sequence[Batch]] | None = None
        #: the last turn found no more that fits
        self.placed_all = True
        #: when (monotonic) placement is tried again after it failed
        self._places_from = -math.inf
        #: what was parked since a turn found no more that fits; whether jobs are placed one a turn, to find who it is
        self._parked_now, self._one_by_one = 0, False
        self._short_way_failed = False
        self._load_seconds = 0.0
        #: Redis refused to write something, as one that is full does
        self._refused = False
        self._connection: Connection
        self._keeper = Keeper(leadership)

    @property
    def epoch(self) -> int:
        return self.leadership.epoch

    def run(self, stop: threading.Event) -> None:
        """Lead until `stop`. Raises NotLeader if another one does, and SQLAlchemy's errors if PostgreSQL goes away."""
        self._keeper.start()
        try:
            self._run(stop)
        finally:
            self._keeper.stop()

    def _run(self, stop: threading.Event) -> None:
        with fenced_connection(self.engine) as self._connection:
            self.load()
            listener = RevokeListener(self.app, self.connect)
            listener.start()
            try:
                self._connect_sources(stop)
                self._or_reconnect(self._do_duties, stop)
                waiting, live = len(self.memory.backlog), len(self.memory.live)
                log.info(line("leading", epoch=self.epoch, waiting=waiting, live=live))
                while not stop.is_set():
                    self._or_reconnect(self.step, stop)
            finally:
                listener.stop()
                self._hand_over()
                listener.join(_LISTENER_SECONDS)

    def _or_reconnect(self, do: Callable[[], None], stop: threading.Event) -> None:
        try:
            do()
        except redis.RedisError as error:
            log.warning(line("redis_away", error=type(error).__name__))
            self._connect_sources(stop)

    def step(self) -> None:
        """Wait for something to do, and do all of it."""
        self._keeper.moved()
        batches = self.inbox.take(self._patience_seconds())
        due = self.memory.admit_due()
        if batches or due or self.memory.needs_a_turn or (not self.placed_all and self._may_place()):
            self.handle(batches)
        self._do_duties()

    def load(self) -> None:
        """Read the record into memory."""
        began = time.monotonic()
        gc.unfreeze()
        self.memory = _memory(self.settings, self._parked)
        with self.engine.begin() as tx:
            assert_current(tx, self.epoch)
            self.memory.load(tx, self.still_here)
            preempting.restore(tx, self.memory, self.settings)
            gang_members.restore(self.memory, self.settings)
            failpoints.hit("scheduler.loading")
        self._load_seconds = time.monotonic() - began
        # What was loaded stays, and is no garbage: a million waiting jobs would be looked through again and again.
        gc.freeze()

    def handle(self, batches: Sequence[Batch]) -> None:
        """One turn for these batches, as often as it takes. A message that no turn can swallow is set aside, alone."""
        failpoints.hit("scheduler.after_take")
        tries = 0
        while True:
            tries += 1
            try:
                self._handle_once(batches)
                return
            except PlacingFailed as failed:
                # No message is to blame: they are handled without whom it failed for, or without placing.
                self._park(failed)
                tries = 0
                continue
            except Exception as error:
                if is_momentary(error) and tries < _TURN_TRIES:
                    log.warning(line("turn_again", error=type(error.orig).__name__, tries=tries))  # type: ignore[attr-defined]
                elif is_momentary(error) and is_poison(error) and self._may_place():
                    # Perhaps it is something that is placed.
                    self._park(PlacingFailed(error))
                    tries = 0
                    continue
                elif is_poison(error) and self._short_way_failed:
                    # An ordinary turn tells who is to blame.
                    self._short_way_failed = self.placed_all = False
                elif is_poison(error):
                    self._set_poison_aside(batches, error)
                    return
                else:
                    raise
            time.sleep(random.uniform(0, _RETRY_FIRST_SECONDS * 2**tries))  # noqa: S311 - no secret
            self.load()

    def _handle_once(self, batches: Sequence[Batch]) -> None:
        began = time.monotonic()
        turn = (self.placed_all and self._at_once(batches)) or self._in_turn(batches)
        if turn.counts:
            log.info(line("turn", **turn.counts, milliseconds=(time.monotonic() - began) * 1000))

    def _at_once(self, batches: Sequence[Batch]) -> Turn | None:
        """The short way, for new jobs that find a place as they come; None if there is more to it."""
        turn = Turn(self._connection, self.epoch, self.memory, self.new_outbox(), self.settings)
        self._short_way_failed = True
        with fences_itself(self._connection):
            placed = place_at_once(turn, batches)
        self._short_way_failed = False
        if not placed:
            return None
        failpoints.hit("scheduler.after_commit")
        self.publish(turn.outbox, batches)
        failpoints.hit("scheduler.after_publish")
        return turn

    def _in_turn(self, batches: Sequence[Batch]) -> Turn:
        with self.turn(batches) as turn:
            for batch in batches:
                if batch.source in INBOX_LISTS:
                    turn.submissions += accepting.accept(turn, batch)
            reports.handle(turn, REPORTS, _of(batches, REPORTS))
            commands.handle(turn, COMMANDS, _of(batches, COMMANDS))
        return turn

    @contextmanager
    def turn(self, batches: Sequence[Batch] = ()) -> Iterator[Turn]:
        """A transaction under this epoch; afterwards placement, the commit, and what is to be said."""
        outbox = self.new_outbox()
        with fenced(self._connection, self.epoch) as tx:
            turn = Turn(tx, self.epoch, self.memory, outbox, self.settings)
            yield turn
            gang_ends.settle(turn)
            unblocking.unblock(turn)
            setting_aside.handle(turn)
            self.memory.admit_members()
            if self._may_place():
                self._place(turn)
            accepting.acknowledge(turn, turn.submissions)
            for question in turn.questions:
                commands.answer(turn, question)
            failpoints.hit("scheduler.before_commit")
        failpoints.hit("scheduler.after_commit")
        self.publish(outbox, batches)
        failpoints.hit("scheduler.after_publish")

    def _place(self, turn: Turn) -> None:
        limit = 1 if self._one_by_one else placing.PLACED_PER_TURN
        with blaming():
            self.placed_all = placing.place(turn, limit) < limit
        # Until the first node is heard of, as after each failure, nothing was tried.
        if self.placed_all and any(node.state == NodeState.UP for node in self.memory.cluster):
            self._parked_now, self._one_by_one = 0, False

    def publish(self, outbox: Outbox, batches: Sequence[Batch] = ()) -> None:
        """Send what a commit has to say, and forget the batches that it was about.

        Raises redis.RedisError if Redis is away; then it is sent again once it is back.
        """
        if not outbox and not batches:
            return
        self._unsent = outbox, batches
        answers = self._send(outbox, batches)
        if any(answer == 0 for answer in answers[len(answers) - len(batches) :]):
            raise redis.ConnectionError("a processing list is not as this leader left it: Redis lost something")

    def new_outbox(self) -> Outbox:
        return Outbox(self.settings.result_ttl_seconds, self.epoch)

    def still_here(self) -> None:
        """Raises ServerUnavailable if the lock that makes this process the leader is gone, with its connection."""
        self._keeper.moved()
        if not self.leadership.alive():
            raise ServerUnavailable("the connection to PostgreSQL that holds the leadership is gone")

    def _send(self, outbox: Outbox, batches: Sequence[Batch]) -> list[object]:
        pipe = self.redis.pipeline(transaction=False)
        outbox.write(pipe)
        for batch in batches:
            self.inbox.forget(pipe, batch)
        answers: list[object] = pipe.execute(raise_on_error=False)
        if FENCED in answers:
            raise NotLeader(f"epoch {self.epoch} is over: stop and stand by", epoch=self.epoch)
        refused = [answer for answer in answers if isinstance(answer, redis.RedisError | bytes)]
        if refused:
            # Such as a Redis that is full: duties publish again what matters.
            log.error(line("redis_refused", first=refused[0]))
        tell(self.app, outbox.last_words)
        self._unsent = None
        if self._refused and not refused:
            self.redis_is_back()
        self._refused = bool(refused)
        return answers

    def _patience_seconds(self) -> float:
        if self.memory.needs_a_turn or (not self.placed_all and self._may_place()):
            return 0.0
        moments = [
            *self._due,
            self._places_from if not self.placed_all else math.inf,
            self.memory.next_moment() or float("inf"),
        ]
        return max(0.0, min(moments) - time.monotonic())

    def _do_duties(self) -> None:
        for number, duty in enumerate(self.duties):
            if self._due[number] <= time.monotonic():
                # Counted from now and not from when it was due: a loop that is behind must not catch up.
                self._due[number] = time.monotonic() + duty.every_seconds
                try:
                    counts = {name: count for name, count in duty.run_once().items() if count}
                except PlacingFailed as failed:
                    self._park(failed)
                    continue
                except Exception as error:
                    if not is_momentary(error) and not is_poison(error):
                        raise
                    # A duty that cannot be done must not keep all others from being done.
                    log.exception(line("duty_failed", duty=type(duty).__name__, where=where(error)))
                    self._due[number] += self._pause_seconds(_FAILURE_PAUSE_SECONDS)
                    self.load()
                    continue
                if counts:
                    log.info(line("duty", duty=type(duty).__name__, **counts))

    def _connect_sources(self, stop: threading.Event) -> None:
        """Start from what Redis has now, waiting for it as long as it takes."""
        self.inbox.stop()
        pause_seconds, growing = _RETRY_FIRST_SECONDS, Growing()
        while not stop.is_set():
            self.still_here()
            try:
                self._say_who_leads()
                if self._unsent is not None:
                    # Some of it may have gone out before: nodes know an attempt's token, watchers the last word.
                    self._send(*self._unsent)
                self.inbox.give_back(self.redis, own=True)
                self.inbox.start()
                break
            except redis.RedisError as error:
                if growing.is_due(str(error), time.monotonic()):
                    log.warning(line("redis_away", reason=error))
                # A server that may not write any more (a primary that became a replica) is not asked again.
                self.redis.connection_pool.disconnect()
                stop.wait(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _RETRY_CAP_SECONDS)
        self.redis_is_back()

    def _say_who_leads(self) -> None:
        """Raises ServerUnavailable if this term must end, so that one with a later epoch begins."""
        try:
            self.inbox.lead(self.redis)
        except NotLeader as error:
            self.still_here()
            # We hold the lock, so it is the record that is older than what was said here: a backup, or a standby that
            # lost its tail.
            later: int = error.current  # type: ignore[attr-defined]
            log.error(line("record_is_older_than_redis", epoch=self.epoch, redis=later))
            with self.engine.begin() as tx:
                go_beyond(tx, later)
            raise ServerUnavailable(f"PostgreSQL has lost epochs up to {later}: a new term begins") from error

    def redis_is_back(self) -> None:
        """Redis was away, or has lost its memory: what was said to nodes and to Celery may be gone."""
        for duty in self.duties:
            duty.redis_is_back()

    def _set_poison_aside(self, batches: Sequence[Batch], error: Exception) -> None:
        """Handle messages one by one after a turn that failed; one that fails alone is rejected."""
        # The turn was rolled back, and memory had gone ahead with it.
        self.load()
        messages = [single for batch in batches for single in batch.singles()]
        log.error(line("turn_failed", error=type(error).__name__, messages=len(messages), where=where(error)))
        if not messages:
            time.sleep(_FAILURE_PAUSE_SECONDS)
            return
        if len(messages) > 1:
            for single in messages:
                self.handle([single])
            return
        outbox = self.new_outbox()
        for single in messages:
            outbox.reject(single.source, single.messages[0], f"it failed its turn: {type(error).__name__}")
        self.publish(outbox, messages)

    def _park(self, failed: PlacingFailed) -> None:
        """Place all others while those are parked for whom placement failed; nobody for a while, if that is not known,
        or if it failed for others a moment ago.
        """
        self.placed_all = False
        error = {"error": type(failed.error).__name__, "where": where(failed.error)}
        if failed.key is not None:
            seconds = self._parked.park(failed, self._pause_seconds(0.0))
            self._parked_now += 1
            log.error(line("parked", jobs=failed.key, again_in_seconds=round(seconds), **error))
        one_by_one, self._one_by_one = self._one_by_one, len(failed.job_ids) > 1
        if self._parked_now > _PARKED_AT_ONCE or (failed.key is None and (one_by_one or not self._one_by_one)):
            pause_seconds = self._pause_seconds(_PLACING_PAUSE_SECONDS)
            self._places_from, self._parked_now = time.monotonic() + pause_seconds, 0
            waiting = len(self.memory.backlog)
            log.error(line("nothing_can_be_placed", waiting=waiting, again_in_seconds=round(pause_seconds), **error))
        self.load()

    def _pause_seconds(self, least_seconds: float) -> float:
        """How long something that has failed is not tried again: longer where the record takes long to read."""
        return max(least_seconds, self._load_seconds / _LOADING_SHARE)

    def _may_place(self) -> bool:
        return self._places_from <= time.monotonic()

    def _hand_over(self) -> None:
        self.inbox.stop()
        with suppress(redis.RedisError):
            self.inbox.give_back(self.redis, own=True)
        self.redis.close()


def _of(batches: Sequence[Batch], source: str) -> list[bytes]:
    return [message for batch in batches if batch.source == source for message in batch.messages]


def _memory(settings: Settings, parked: Parked) -> Memory:
    usual = OwnerLimits(
        running=settings.owner_running_limit,
        waiting=settings.owner_waiting_limit,
        per_minute=settings.owner_submissions_per_minute,
    )
    return Memory(settings.score_weights, settings.placement, settings.fair_share_half_life_seconds, usual, parked)
