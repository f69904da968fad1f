"""Who submits what in a simulated cluster, and what its jobs do when they run."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from broker.scheduler.inbox import INBOX_LISTS
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.job_header import changed, dump
from cyxwiz_tasks.protocol.commands import Cancel, Drain, Release, Undrain
from cyxwiz_tasks.protocol.headers import JobHeader
from cyxwiz_tasks.protocol.names import COMMANDS, HEADER, reply_key
from cyxwiz_tasks.protocol.updates import Acks
from cyxwiz_tasks.states import Cause
from tests.simulation.clock import WALL_SECONDS
from tests.simulation.fake_redis import FakeRedis
from tests.simulation.node import Script
from tests.simulation.world import World
from tests.unit.fleet import A100, RTX_3090, T4, capability

_BODY = base64.b64encode(json.dumps([[], {}, {}]).encode()).decode()
_AGAIN_SECONDS = 30.0
_SHAPES: tuple[dict[str, Any], ...] = (
    {"cpus": 1},
    {"cpus": 4, "ram": "8GB"},
    {"gpus": 1},
    {"gpus": 1, "gpu_memory": "20GB"},
    {"gpus": 2},
    {"gpu_memory": "6GB", "shared": True},
)
#: those of gangs
_GANGS: tuple[dict[str, Any], ...] = ({"nodes": 2}, {"nodes": 2, "cpus": 2}, {"nodes": 3})
_PRIORITIES = ("low", "normal", "normal", "normal", "high", "critical")


def machines(world: World, least: int = 2) -> list[Capability]:
    """What the nodes of a cluster can do, `least` of them or more; the first of them can do every job on one node."""
    cards = [(), (T4,), (RTX_3090,), (T4, T4), (A100, RTX_3090)]
    some = [capability(*world.random.choice(cards), slots=world.random.randint(1, 4), cpus=8) for _ in range(5)]
    return [capability(A100, A100, slots=4, cpus=16), *some[: world.random.randint(least - 1, 5)]]


@dataclass
class SimJob:
    id: str
    message: str
    inbox: str
    script: tuple[Script, ...]
    key: str
    once: bool
    sent_at: float | None = None
    releases: int = 0
    acked: str | None = None
    refused: str | None = None


@dataclass
class Workload:
    world: World
    server: FakeRedis
    #: how many of the jobs are gangs
    gangs: float = 0.0
    jobs: dict[str, SimJob] = field(default_factory=dict)

    def plan(self, count: int, seconds: float) -> None:
        """Submissions over so many seconds, and a wish to cancel here and there."""
        for _ in range(count):
            job = self._job()
            self.jobs[job.id] = job
            at = self.world.between(0.0, seconds)
            self.world.after(at, self._submit, job)
            if self.world.happens(0.1):
                self.world.after(at + self.world.between(0.0, 120.0), self._cancel, job)

    def script_of(self, job_id: str, attempt: int) -> Script:
        script = self.jobs[job_id].script
        return script[min(attempt, len(script)) - 1]

    def _submit(self, job: SimJob) -> None:
        """Until the scheduler has said something, or only once, as `delay()` does. A message may be sent twice."""
        if job.acked is not None or job.refused is not None:
            return
        if self.server.up:
            self.world.say("client", "submits", job=job.id[-4:])
            job.sent_at = WALL_SECONDS + self.world.now
            self.server.replies[job.key] = lambda raw: self._acknowledged(job, raw)
            self.server.lpush(job.inbox, job.message)
            if self.world.happens(0.05):
                self.server.lpush(job.inbox, job.message)
        if job.sent_at is None or not job.once:
            self.world.after(_AGAIN_SECONDS, self._submit, job)

    def _acknowledged(self, job: SimJob, raw: bytes) -> None:
        told = Acks.model_validate_json(raw)
        if job.id in told.recorded:
            job.acked = job.id
        for ack in told.acks:
            if ack.error is None:
                job.acked = ack.job
            else:
                job.refused = ack.error
        self.world.say("client", "accepted", job=job.id[-4:], error=job.refused)

    def _cancel(self, job: SimJob) -> None:
        if self.server.up:
            self.world.say("client", "cancels", job=job.id[-4:])
            self.server.lpush(COMMANDS, Cancel(job=job.id, reason="no longer needed").model_dump_json())

    def release(self, job_id: str) -> None:
        """A person has looked at a held job, and looks at none a third time."""
        job = self.jobs[job_id]
        if self.server.up and job.releases < 2:
            job.releases += 1
            self.world.say("client", "releases", job=job_id[-4:])
            self.server.lpush(COMMANDS, Release(job=job_id).model_dump_json())

    def drain(self, node: str, seconds: float | None) -> None:
        if self.server.up:
            self.world.say("client", "drains", node=node, seconds=seconds)
            self.server.lpush(COMMANDS, Drain(node=node, deadline_seconds=seconds).model_dump_json())

    def undrain(self, node: str) -> None:
        if self.server.up:
            self.world.say("client", "undrains", node=node)
            self.server.lpush(COMMANDS, Undrain(node=node).model_dump_json())

    def _job(self) -> SimJob:
        chance = self.world.random
        id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        exclusive = chance.random() < 0.25
        shapes = _GANGS if self.gangs and chance.random() < self.gangs else _SHAPES
        options = {
            "resources": chance.choice(shapes),
            "priority": chance.choice(_PRIORITIES),
            "exclusive": exclusive,
            "max_retries": chance.choice([0, 0, 2]),
            "start_by": chance.choice([None] * 9 + [60.0]),
            "deadline": chance.choice([None] * 9 + [300.0]),
        }
        header = changed(JobHeader(owner="sim"), options)
        number = INBOX_LISTS[min(3 - header.priority.rank, len(INBOX_LISTS) - 1)]
        key = reply_key(id)
        message = {
            "body": _BODY,
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"id": id, "task": "sim.job", "retries": 0, HEADER: dump(header) | {"reply_to": key}},
            "properties": {"body_encoding": "base64", "delivery_info": {}, "correlation_id": id},
        }
        return SimJob(id, json.dumps(message), number, self._script(), key, once=chance.random() < 0.5)

    def _script(self) -> tuple[Script, ...]:
        chance = self.world.random
        seconds = [10 ** chance.uniform(0.0, 2.3) for _ in range(3)]
        good = Script(seconds[0])
        match chance.random():
            case x if x < 0.7:
                return (good,)
            case x if x < 0.8:
                return (Script(seconds[1], "failed", Cause.ERROR), good)
            case x if x < 0.85:
                return (Script(seconds[1], "failed", Cause.CRASHED), Script(seconds[2], "failed", Cause.CRASHED), good)
            case x if x < 0.9:
                return (Script(seconds[1], "failed", Cause.HARDWARE), good)
            case x if x < 0.95:
                return (Script(seconds[1], "failed", Cause.OUT_OF_MEMORY), good)
            case _:
                return (Script(1.0, "failed", Cause.CRASHED),)
