"""A node that a test plays by hand: it registers, beats, takes messages out of its queue, and reports."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import suppress
from itertools import count
from typing import Any

import redis

from cyxwiz_tasks.capability import Capability, Gpu
from cyxwiz_tasks.protocol.controls import CONTROL
from cyxwiz_tasks.protocol.headers import Assignment
from cyxwiz_tasks.protocol.names import (
    ASSIGNMENT_HEADER,
    BEATS,
    REPORTS,
    control_key,
    node_queue,
    reply_key,
    running_key,
)
from cyxwiz_tasks.protocol.reports import (
    Ended,
    Left,
    Metrics,
    Process,
    Register,
    ReportReply,
    Running,
    Started,
    Stopping,
)

DEADLINE_SECONDS = 10.0
_BEAT = "local now = redis.call('TIME') return redis.call('ZADD', KEYS[1], now[1] + now[2] / 1000000, ARGV[1])"


def capability(gpus: int = 0, slots: int = 4, gpu_gb: int = 80, **values: Any) -> Capability:
    cards = [
        Gpu(index=i, uuid=f"GPU-{i}", model="A100", memory_bytes=gpu_gb << 30, compute_capability="8.0")
        for i in range(gpus)
    ]
    given: dict[str, Any] = {
        "hostname": "box",
        "os": "Linux",
        "os_version": "Debian 12",
        "architecture": "x86_64",
        "python": "3.11",
        "cyxwiz": "0",
        "cpu_model": "some",
        "cpu_cores": 8,
        "ram_bytes": 32 << 30,
        "disk_bytes": 1 << 40,
        "disk_free_bytes": 1 << 39,
        "gpus": cards,
        "slots": slots,
    }
    return Capability(**given | values)


class FakeNode:
    """Beats in a thread from its registration on, until `silence()`."""

    def __init__(self, client: redis.Redis, name: str = "fake", node_id: str | None = None, **values: Any) -> None:
        self.client, self.name, self.id = client, name, node_id or str(uuid.uuid4())
        #: stays open when the node falls silent, as that of a node that is cut off does; the kernel closes a dead one's
        named = client.connection_pool.connection_kwargs | {"client_name": f"cyxwiz-beat-{self.id}"}
        self.beating = redis.Redis.from_pool(redis.ConnectionPool(**named))
        self.incarnation = str(uuid.uuid4())
        self.capability = capability(**values)
        #: tokens that it tells with its beats; None: it is of a release that tells nothing
        self.tokens: tuple[int, ...] | None = None
        #: and which of them have begun
        self.begun: dict[int, Process] = {}
        #: and how old their newest checkpoints are
        self.checkpoint_age_seconds: dict[int, float] = {}
        self._silent = threading.Event()
        self._thread: threading.Thread | None = None

    # Being there ------------------------------------------------------------------------------------------------

    def register(self, running: tuple[int, ...] = (), beat: bool = True) -> ReportReply:
        report = Register(
            node=self.id,
            incarnation=self.incarnation,
            name=self.name,
            hostname=f"{self.name}@box",
            capability=self.capability,
            running=running,
            reply_to=reply_key(str(uuid.uuid4())),
        )
        reply = self._report(report)
        if beat and reply.committed:
            self.beat()
        return reply

    def beat(self) -> None:
        self._silent = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(self._silent,), daemon=True)
        self._thread.start()

    def silence(self) -> None:
        self._silent.set()
        if self._thread is not None:
            self._thread.join()

    def die(self) -> None:
        """As by SIGKILL."""
        self.silence()
        self.close()

    def close(self) -> None:
        self.silence()
        self.beating.close()
        self.client.close()

    def say_stopping(self) -> None:
        """Returns once it was heard."""
        self._send(Stopping(node=self.id, incarnation=self.incarnation))
        # It is not answered itself, but what a stranger says after it is.
        assert not self._leave(incarnation=str(uuid.uuid4())).committed

    def leave(self) -> ReportReply:
        self.silence()
        return self._leave(self.incarnation)

    def _leave(self, incarnation: str) -> ReportReply:
        return self._report(Left(node=self.id, incarnation=incarnation, reply_to=reply_key(str(uuid.uuid4()))))

    def _beat(self, silent: threading.Event) -> None:
        for number in count():
            if silent.is_set():
                return
            with suppress(redis.RedisError):
                self.beating.eval(_BEAT, 1, BEATS, self.id)
                if self.tokens is not None:
                    running = Running(
                        incarnation=self.incarnation,
                        number=number,
                        tokens=self.tokens,
                        begun=self.begun,
                        checkpoint_age_seconds=self.checkpoint_age_seconds,
                    )
                    self.beating.set(running_key(self.id), running.model_dump_json(), ex=10)
            silent.wait(0.1)

    # Work -------------------------------------------------------------------------------------------------------

    def take(self, timeout: float = DEADLINE_SECONDS) -> tuple[Assignment, dict[str, Any]]:
        """The next message of its queue."""
        found = self.client.brpop([node_queue(self.id)], timeout)
        assert found is not None, f"nothing came to {self.name} within {timeout} s"
        message = json.loads(found[1])
        return Assignment.model_validate(message["headers"][ASSIGNMENT_HEADER]), message

    def start(self, assignment: Assignment) -> None:
        self._send(Started(**self._whose(assignment), pid=4711, device="cpu"))

    def start_unheard(self, assignment: Assignment) -> None:
        """The same, and the word of it is lost: only its beats tell."""
        self.begun = self.begun | {assignment.token: Process(pid=4711, device="cpu")}
        self.tokens = (*(self.tokens or ()), assignment.token)

    def tell(self, assignment: Assignment, *rows: dict[str, Any]) -> None:
        self._send(Metrics(**self._whose(assignment), rows=rows))

    def end(self, assignment: Assignment, outcome: str = "completed", **values: Any) -> ReportReply:
        reply_to = reply_key(str(uuid.uuid4()))
        report = Ended(**self._whose(assignment), outcome=outcome, reply_to=reply_to, **values)  # type: ignore[arg-type]
        return self._report(report)

    def run(self, result: Any = None) -> Assignment:
        """One job from its message to its end."""
        assignment, _ = self.take()
        self.start(assignment)
        assert self.end(assignment, result=result).committed
        return assignment

    def told(self, timeout: float = DEADLINE_SECONDS) -> Any:
        """The next control."""
        found = self.client.brpop([control_key(self.id)], timeout)
        assert found is not None, f"nothing was said to {self.name} within {timeout} s"
        return CONTROL.validate_json(found[1])

    def _whose(self, assignment: Assignment) -> dict[str, Any]:
        return {
            "node": self.id,
            "incarnation": self.incarnation,
            "job": assignment.job,
            "attempt": assignment.attempt,
            "token": assignment.token,
        }

    def _send(self, report: Any) -> None:
        self.client.lpush(REPORTS, report.model_dump_json())

    def _report(self, report: Any) -> ReportReply:
        self._send(report)
        found = self.client.brpop([report.reply_to], DEADLINE_SECONDS)
        assert found is not None, f"no answer to {report.kind}"
        return ReportReply.model_validate_json(found[1])
