"""Messages that come twice, not at all, or from nobody; and cancellations that race with ends."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress

import redis

from cyxwiz_tasks import Client
from cyxwiz_tasks.errors import CyxwizError
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, COMMANDS, INBOX, REPORTS, control_key, node_queue
from tests.chaos.faults.fault import BLINK, PATIENCE_SECONDS, Fault
from tests.chaos.faults.monitor import recorded_pushes
from tests.chaos.schedule import Kind

_FOREIGN = (
    b"",
    b"not json",
    b"\xff\xfe\x00\x00",
    b"[]",
    b"null",
    b'{"kind": "ended"}',
    b'{"kind": "ended", "job": "x", "token": "y", "node": 1}',
    b'{"kind": "from_the_future", "version": 99}',
    b'{"body": "!!", "headers": {"cyxwiz": {"version": 99}}, "properties": {}}',
    b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}",
)


class _OnQueue(Fault):
    """Works on one node's queue."""

    @property
    def node_id(self) -> str:
        return (self.node.home / "nodes" / self.node.name / "id").read_text().strip()


class DuplicateDelivery(_OnQueue):
    """Messages come again, several times, seconds after they were delivered."""

    kind = Kind("duplicate_delivery", "node", (0.5, 1.0))

    def inject(self) -> None:
        queue = node_queue(self.node_id)
        with recorded_pushes(self.stack.servers.redis, queue) as messages:
            self.until(lambda: len(messages) >= 3, PATIENCE_SECONDS / 2)
        self.wait(self.planned.seconds)
        if messages:
            with self.stack.servers.redis_client() as client:
                for message in messages * 3:
                    client.lpush(queue, message)
            self.proof = {"messages": len(messages), "copies": 3}


class LostMessage(Fault):
    """Redis has handed a job's message out, and it never arrives."""

    kind = Kind("lost_message", "node", (2.0, 6.0))

    def inject(self) -> None:
        proxy = self.node.proxies["redis"]
        self.node_at_work()
        before = proxy.counts["swallowed"]
        proxy.swallow(ASSIGNMENT_HEADER.encode())
        if self.until(lambda: proxy.counts["swallowed"] > before, PATIENCE_SECONDS):
            self.proof = {"swallowed": 1}

    def heal(self) -> None:
        self.node.proxies["redis"].heal()


class ForeignMessages(_OnQueue):
    """Whatever may lie in a list that is not ours alone."""

    kind = Kind("foreign_messages", "messages", BLINK)

    def inject(self) -> None:
        with self.stack.servers.redis_client() as client:
            names = [INBOX, f"{INBOX}\x06\x163", REPORTS, COMMANDS]
            for name in (*names, control_key(self.node_id)):
                client.lpush(name, *_FOREIGN, secrets.token_bytes(64))
            # A node's own queue is Celery's: there a frame of nobody's is at least a frame.
            headers = {"id": secrets.token_hex(16), "task": "nobody.knows", "lang": "py"}
            properties = {"delivery_tag": secrets.token_hex(16), "delivery_info": {}, "body_encoding": "utf-8"}
            frame = {"body": "[[], {}, {}]", "headers": headers, "properties": properties}
            frame |= {"content-type": "application/json", "content-encoding": "utf-8"}
            client.lpush(node_queue(self.node_id), json.dumps(frame))
        self.proof = {"messages": (len(_FOREIGN) + 1) * 5 + 1}


class CancelRacing(Fault):
    """Jobs are cancelled in the moment in which they end."""

    kind = Kind("cancel_racing", "client", BLINK)

    def inject(self) -> None:
        about: list[str] = []

        def look() -> bool:
            about[:] = list(dict.fromkeys(s["job"] for s in self.scene.newest_steps(60) if s["step"] in (1, 20)))[:5]
            return bool(about)

        if not self.until(look, PATIENCE_SECONDS):
            return
        answers = {}
        with Client(self.stack.client_url) as client:
            for job in about:
                with suppress(CyxwizError, redis.RedisError):
                    answers[job] = client.cancel(job, "chaos: a race")["state"]
        self.proof = {"tried": about, "answers": answers} if answers else {}


KINDS: tuple[type[Fault], ...] = (DuplicateDelivery, LostMessage, ForeignMessages, CancelRacing)
