"""A node, by the agent's contract: what it takes, runs, reports, says again, and stops by itself.

It beats while it lives and is linked; beats are made when somebody looks at them. A job's process is an interval of
time in which it runs. An end is told until the scheduler has answered, and is on disk before: a new start of the agent
tells what its forerunner left open.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from broker.scheduler.outbox import STATE_PREFIX
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.protocol.controls import CONTROL, RegisterAgain, Stop
from cyxwiz_tasks.protocol.headers import Assignment
from cyxwiz_tasks.protocol.names import (
    ASSIGNMENT_HEADER,
    HEADER,
    REPORTS,
    control_key,
    node_queue,
    reply_key,
    running_key,
)
from cyxwiz_tasks.protocol.reports import Ended, Left, Metrics, Process, Register, ReportReply, Started, Stopping
from cyxwiz_tasks.settings import Settings
from cyxwiz_tasks.states import Cause
from tests.simulation.fake_redis import FakeRedis
from tests.simulation.world import World

BEAT_SECONDS = 0.3
#: what runs is not told with every beat: it would take a third of the simulation's time
TELLING_SECONDS = 1.5
_MARGIN_SECONDS = 2.0
_PROCESS = {"pid": 4711, "device": "cpu"}


@dataclass(frozen=True)
class Script:
    """What a job does, each time that it runs: seconds it takes, and how it ends by itself."""

    seconds: float
    outcome: str = "completed"
    cause: Cause | None = None


@dataclass
class Run:
    """One attempt on this node."""

    assignment: Assignment
    exclusive: bool
    #: its process runs since
    began_at: float | None = None
    ended: Ended | None = None
    stop: Stop | None = None


@dataclass
class Witness:
    """Outside of everything: when which process of a job ran, and which results the scheduler confirmed."""

    #: by job: token, or that of its gang; begin, end; whether it is exclusive; token
    intervals: dict[str, list[list[Any]]] = field(default_factory=dict)
    confirmed: dict[str, set[int]] = field(default_factory=dict)


class SimNode:
    def __init__(
        self,
        id: str,
        name: str,
        world: World,
        settings: Settings,
        server: FakeRedis,
        witness: Witness,
        capability: Capability,
        script: Callable[[str, int], Script],
    ) -> None:
        self.id, self.name, self.world, self.settings, self.server = id, name, world, settings, server
        self.witness, self.capability, self.script = witness, capability, script
        self.alive = self.linked = self.frozen = self.registered = False
        #: a machine without power leaves its connections open for a while
        self.connection: int | None = None
        self.incarnation = ""
        self.runs: dict[int, Run] = {}
        self.seen: set[int] = set()
        self.early_stops: dict[int, Stop] = {}
        #: on disk: ends, and attempts that had begun, of which nobody has confirmed anything
        #: what Redis has answered and nobody has read yet
        self.socket: list[bytes] = []
        self.journal: dict[int, Run] = {}
        self.couriers: set[int] = set()
        self.heard_at = 0.0
        #: when it was last seen dead, frozen, or cut off
        self.disturbed_at = 0.0
        self._life = 0
        self._deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._unsent: list[str] = []
        self._told_at = -1.0

    # Life -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.alive:
            return
        self._life += 1
        self.alive = self.linked = True
        self.connection = self.world.random.getrandbits(30)
        self.incarnation = f"{self.name}-{self._life}"
        self.heard_at = self.world.now
        self.world.say(self.name, "starts", incarnation=self.incarnation)
        for token, run in list(self.journal.items()):
            if run.ended is None:
                run.ended = self._end_report(run, "failed", Cause.NODE_LOST, "the agent was started anew")
            run.ended = run.ended.model_copy(update={"untold": True})
            self.couriers.add(token)
            self._later(self.world.between(0.1, 2.0), self._confirm, run)
        self._later(0.1, self._register)

    def die(self, *, power: bool = False) -> None:
        """The agent and all that it runs is gone at once; with `power`, nobody closes its connections."""
        if not self.alive:
            return
        self.world.say(self.name, "dies", power=power, runs=list(self.runs))
        self._make_beats()
        self.alive = self.registered = self.frozen = False
        if not power:
            self.connection = None
        for run in self.runs.values():
            self._process_ends(run)
        self._life += 1
        self.runs.clear()
        self.seen.clear()
        self.early_stops.clear()
        self.couriers.clear()
        self.socket.clear()
        self._deferred.clear()
        self._unsent.clear()

    def freeze(self, seconds: float) -> None:
        if self.alive and not self.frozen:
            self.world.say(self.name, "frozen", seconds=round(seconds, 1))
            self._make_beats()
            self.frozen = True
            for run in self.runs.values():
                self._process_ends(run)
            self._schedule(seconds, self._thaw, self._life)

    def _thaw(self, life: int) -> None:
        if life == self._life:
            self.world.say(self.name, "thawed")
            self.frozen = False
            # What is overdue comes first: a process that should be gone by its own clock ends before it does anything.
            self._watch_link()
            socket, self.socket = self.socket, []
            for raw in socket:
                self._take(json.loads(raw))
            for run in self.runs.values():
                if run.began_at is not None and run.ended is None:
                    self._process_runs(run)
            deferred, self._deferred = self._deferred, []
            for action, arguments in deferred:
                action(*arguments)

    def cut(self, seconds: float) -> None:
        if self.alive and self.linked:
            self.world.say(self.name, "cut off", seconds=round(seconds, 1))
            self._make_beats()
            self.linked = False
            self._schedule(seconds, self._join, self._life)
            if self.world.happens(0.5) and seconds > 5.0:
                # The other side may give the connection up meanwhile.
                self._schedule(self.world.between(0.0, seconds), self._lose_connection, self._life)

    def _lose_connection(self, life: int) -> None:
        if life == self._life and not self.linked:
            self.connection = None

    def _join(self, life: int) -> None:
        if life == self._life:
            self.world.say(self.name, "linked again")
            self.linked = True
            self.redis_restarted()
            self._later(0.05, self._poll)

    def redis_restarted(self) -> None:
        """Connections are made anew, and a new connection of the worker begins with a registration."""
        self.connection = None
        if self.alive and self.linked and not self.frozen and self.server.up:
            self.connection = self.world.random.getrandbits(30)
            if self.world.happens(0.7):
                self._later(self.world.between(0.1, 1.0), self._register)

    def leave(self, down_seconds: float) -> None:
        """Stop in order: everything gives its place back first."""
        if self.alive and not self.frozen and self.linked:
            self.world.say(self.name, "leaves")
            self._report(Stopping(node=self.id, incarnation=self.incarnation))
            for run in list(self.runs.values()):
                if run.ended is None:
                    self._end(run, "preempted", Cause.PREEMPTED)
            self.registered = False
            self._later(2.0, self._left, down_seconds)

    def _left(self, down_seconds: float) -> None:
        self._report(Left(node=self.id, incarnation=self.incarnation, reply_to=None))
        self.die()
        self.world.after(down_seconds, self.start)

    # What others see ------------------------------------------------------------------------------------------------

    @property
    def reaches(self) -> bool:
        return self.alive and self.linked and not self.frozen and self.server.up

    def beat(self) -> None:
        """Make the beats up to now, if it could."""
        if self.registered and self.reaches:
            self._make_beats()

    def _make_beats(self) -> None:
        if not (self.registered and self.reaches):
            return
        now, server = self.world.now, self.server
        late = (now + self._life * 0.07) % BEAT_SECONDS
        if self._alone() > self._exclusive_limit:
            # What lies in its queue may be another's by now; the scheduler sends again what is not.
            server.lists.pop(node_queue(self.id), None)
        self.heard_at = max(self.heard_at, now - late)
        server.beats[self.id] = server.time() - late
        if now - self._told_at > TELLING_SECONDS:
            self._told_at = now
            tokens = sorted({*self.runs, *self.couriers})
            begun = {token: _PROCESS for token, run in self.runs.items() if run.began_at is not None}
            told = {"incarnation": self.incarnation, "number": int(now * 1000), "tokens": tokens, "begun": begun}
            text = json.dumps(told)
            server.set(running_key(self.id), text, 60.0)

    # Messages -------------------------------------------------------------------------------------------------------

    def arrived(self) -> None:
        if (
            self.frozen
            and self.linked
            and self.registered
            and not self.socket
            and len(self.runs) < self.capability.slots
        ):
            # It waits in BRPOP: the answer goes out, and lies in its socket.
            self.socket = self.server.rpop(node_queue(self.id), 1)
        elif self.alive:
            self._later(self.world.between(0.002, 0.1), self._poll)

    def _poll(self) -> None:
        if not self.reaches:
            return
        for raw in self.server.rpop(control_key(self.id), 1000):
            control = CONTROL.validate_json(raw)
            if isinstance(control, RegisterAgain):
                self._report(self._registration(None))
            else:
                self._stop(control)
        while self.registered and len(self.runs) < self.capability.slots:
            taken = self.server.rpop(node_queue(self.id), 1)
            if not taken:
                return
            self._take(json.loads(taken[0]))

    def _take(self, message: dict[str, Any]) -> None:
        assignment = Assignment.model_validate(message["headers"][ASSIGNMENT_HEADER])
        token = assignment.token
        if (assignment.node, assignment.incarnation) != (self.id, self.incarnation) or token in self.seen:
            return
        self.seen.add(token)
        exclusive = bool(message["headers"][HEADER].get("exclusive"))
        if exclusive and self._alone() > self._exclusive_limit:
            # Its lease may have ended before it came.
            return
        self.world.say(self.name, "takes", job=assignment.job[-4:], token=token)
        run = self.runs[token] = Run(assignment, exclusive)
        early = self.early_stops.pop(token, None)
        if early is not None:
            self._end(run, early.outcome, Cause(early.outcome))
        else:
            self._later(self.world.between(0.01, 1.5), self._begin, run)

    def _begin(self, run: Run) -> None:
        if run.ended is not None:
            return
        token, job = run.assignment.token, run.assignment.job
        run.began_at = self.world.now
        self.journal[token] = run
        self._process_runs(run)
        self._report(Started(**self._identity(run), **_PROCESS))
        script = self.script(job, run.assignment.attempt)
        if run.assignment.gang is not None and run.assignment.gang.rank:
            # By themselves the others do well.
            script = Script(script.seconds)
        if self.world.happens(0.2):
            self._report(Metrics(**self._identity(run), rows=({"loss": 0.5},)))
        self._later(script.seconds, self._finish, run, script)

    def _finish(self, run: Run, script: Script) -> None:
        if run.ended is None:
            message = None if script.cause is None else "as it was told to"
            self._end(run, script.outcome, script.cause, message)

    def _stop(self, stop: Stop) -> None:
        run = self.runs.get(stop.token)
        if run is None:
            if stop.token not in self.seen:
                self.early_stops[stop.token] = stop
        elif run.ended is None:
            run.stop = stop
            self.world.say(self.name, "stops", token=stop.token, outcome=stop.outcome)
            self._later(self.world.between(0.05, stop.grace_seconds + 0.3), self._stopped, run)

    def _stopped(self, run: Run) -> None:
        if run.ended is None and run.stop is not None:
            self._end(run, run.stop.outcome, Cause(run.stop.outcome))

    def _watch_link(self) -> None:
        """A node that is cut off ends what must not go on: exclusive jobs before their lease could, others later."""
        if self.frozen or not self.alive:
            return
        for run in list(self.runs.values()):
            limit = self._exclusive_limit if run.exclusive else self.settings.disconnected_seconds
            if run.ended is None and self._alone() > limit:
                self._end(run, "failed", Cause.NETWORK, "its node was cut off")

    @property
    def _exclusive_limit(self) -> float:
        return self.settings.lease_seconds - _MARGIN_SECONDS

    def _alone(self) -> float:
        """Seconds since it was heard, as far as it knows."""
        return self.world.now - self.heard_at

    def look_at_link(self) -> None:
        """Called often."""
        if self.alive and not self.reaches:
            self._watch_link()

    # Reports --------------------------------------------------------------------------------------------------------

    def _end(self, run: Run, outcome: str, cause: Cause | None, message: str | None = None) -> None:
        self._process_ends(run)
        run.ended = self._end_report(run, outcome, cause, message)
        self.journal[run.assignment.token] = run
        self.world.say(self.name, "ended", token=run.assignment.token, outcome=outcome, cause=cause)
        self._confirm(run)

    def _end_report(self, run: Run, outcome: Any, cause: Cause | None, message: str | None) -> Ended:
        result = {"token": run.assignment.token} if outcome == "completed" else None
        exit_code = None if cause is None else 1
        identity = self._identity(run)
        return Ended(
            **identity,
            outcome=outcome,
            cause=cause,
            message=message,
            exit_code=exit_code,
            process=None if run.began_at is None else Process.model_validate(_PROCESS),
            result=result,
            seconds=0.0 if run.began_at is None else self.world.now - run.began_at,
            had_memory_bytes=2**30 if cause == Cause.OUT_OF_MEMORY else None,
        )

    def _process_runs(self, run: Run) -> None:
        given = run.assignment
        interval = [given.gang.token if given.gang else given.token, self.world.now, None, run.exclusive, given.token]
        self.witness.intervals.setdefault(run.assignment.job, []).append(interval)

    def _process_ends(self, run: Run) -> None:
        if run.began_at is not None:
            for interval in self.witness.intervals[run.assignment.job]:
                if interval[4] == run.assignment.token and interval[2] is None:
                    interval[2] = self.world.now

    def _confirm(self, run: Run) -> None:
        """Send the end again until there is an answer."""
        token, ended = run.assignment.token, run.ended
        assert ended is not None
        if token not in self.journal:
            return
        if self.reaches and not self._unsent:
            key = reply_key(f"{self.id}.{self.world.random.getrandbits(40)}")
            life = self._life
            self.server.replies[key] = lambda raw: self._later_if(life, 0.01, self._answered, run, raw)
            self.server.lpush(REPORTS, ended.model_copy(update={"reply_to": key}).model_dump_json())
            self._later(5.0, self._confirm, run)
        else:
            self._later(self.world.between(0.5, 5.0), self._confirm, run)

    def _answered(self, run: Run, raw: bytes) -> None:
        token = run.assignment.token
        if not self.reaches or token not in self.journal:
            return
        reply = ReportReply.model_validate_json(raw)
        ended = run.ended
        assert ended is not None
        if reply.committed and ended.outcome == "completed" and run.assignment.gang is None:
            self.witness.confirmed.setdefault(ended.job, set()).add(token)
        if reply.final and not ended.untold and self.world.happens(0.95):
            state = json.dumps({"status": _CELERY[ended.outcome]})
            self.server.set(STATE_PREFIX + ended.job, state, self.settings.result_ttl_seconds)
        del self.journal[token]
        self.runs.pop(token, None)
        self.couriers.discard(token)
        self._poll()

    def _register(self) -> None:
        """Ask until the scheduler has it."""
        if not self.reaches:
            self._later(self.world.between(0.5, 1.5), self._register)
            return
        key = reply_key(f"{self.id}.{self.world.random.getrandbits(40)}")
        life = self._life
        self.server.replies[key] = lambda raw: self._later_if(life, 0.01, self._registered, raw)
        self.server.lpush(REPORTS, self._registration(key).model_dump_json())
        self._later(1.0, self._ask_again, key)

    def _ask_again(self, key: str) -> None:
        if self.server.replies.pop(key, None) is not None:
            self._register()

    def _registered(self, raw: bytes) -> None:
        if ReportReply.model_validate_json(raw).committed:
            if not self.registered:
                self.heard_at = self.world.now
            self.registered = True
            self._poll()
        else:
            self._later(0.5, self._register)

    def _registration(self, key: str | None) -> Register:
        return Register(
            node=self.id,
            incarnation=self.incarnation,
            name=self.name,
            hostname=f"{self.name}@box",
            capability=self.capability,
            running=tuple({*self.runs, *self.couriers}),
            reply_to=key,
        )

    def _report(self, report: Any) -> None:
        """Gathered while Redis is away, and sent in order."""
        self._unsent.append(report.model_dump_json())
        self._flush()

    def _flush(self) -> None:
        if self._unsent and self.reaches:
            unsent, self._unsent = self._unsent, []
            for raw in unsent:
                self.server.lpush(REPORTS, raw)
        elif self._unsent:
            self._later(self.world.between(0.3, 2.0), self._flush)

    def _identity(self, run: Run) -> dict[str, Any]:
        given = run.assignment
        return {
            "node": given.node,
            "incarnation": given.incarnation,
            "job": given.job,
            "attempt": given.attempt,
            "token": given.token,
        }

    # Time -----------------------------------------------------------------------------------------------------------

    def _schedule(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Whatever becomes of the node."""
        self.world.after(seconds, action, *arguments)

    def _later(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        self.world.after(seconds, self._if_it_lives, self._life, action, arguments)

    def _later_if(self, life: int, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        self.world.after(seconds, self._if_it_lives, life, action, arguments)

    def _if_it_lives(self, life: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life != self._life:
            return
        if self.frozen:
            self._deferred.append((action, arguments))
        else:
            action(*arguments)


_CELERY = {"completed": "SUCCESS", "failed": "FAILURE", "cancelled": "REVOKED"}
