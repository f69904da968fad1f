"""What one turn of the scheduler says after its commit, sent in one round trip.

Celery states are written as Celery's Redis backend writes them (the same key, the same JSON, SETEX and PUBLISH), but
without its look at the old state first: the record has just decided what the state is. Within the pipeline a job's
state goes out before its message to the node, so the node's STARTED comes after our ASSIGNED.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import redis
from celery.exceptions import TaskRevokedError
from celery.states import FAILURE, READY_STATES, RETRY, REVOKED, SUCCESS

from broker.scheduler.telling import LastWord, Outcome, awaited
from cyxwiz_tasks.protocol.message import Message
from cyxwiz_tasks.protocol.names import BEATS, REJECTED, control_key, node_queue, progress_key
from cyxwiz_tasks.protocol.updates import Ack, Acks, Update
from cyxwiz_tasks.states import JobState
from db.job_messages import StoredMessage

STATE_PREFIX = "celery-task-meta-"
#: the epoch of the newest leader that was here
EPOCH = "cyxwiz.epoch"
#: the answer to a leader whose epoch is over: a frozen one that thaws must not put old states over new ones
FENCED = b"FENCED"
#: how long an answer waits for whoever asked; the asker has given up before
REPLY_TTL_SECONDS = 60
#: how long a node that is away may take to read what it was told; it registers again afterwards in any case
CONTROL_TTL_SECONDS = 3600
#: Redis serves nobody else while a script runs, about a microsecond a command of five words
_WORDS_PER_SCRIPT = 2000
#: commands of the script below, beside those of Redis: SET and PUBLISH of one text, or of equal texts about many jobs
_STATE, _STATE_IF_NONE, _STATES = "STATE", "STATE_IF_NONE", "STATES"
_IDS_PER_COMMAND = 400
_ID = "<id>"
# Commands one after the other, each with its length before it. As commands of a pipeline they would cost the loop twice
# as much: the client packs, parses and checks each of them.
_SAY = """
if tonumber(redis.call('GET', KEYS[1]) or '0') > tonumber(ARGV[1]) then return 'FENCED' end
local at, failed = 2, nil
while at <= #ARGV do
  local last = at + tonumber(ARGV[at])
  local name, key, answer = ARGV[at + 1], ARGV[at + 2]
  if name == 'STATE' then
    answer = redis.pcall('SETEX', key, ARGV[at + 3], ARGV[last])
    redis.pcall('PUBLISH', key, ARGV[last])
  elseif name == 'STATE_IF_NONE' then
    answer = redis.pcall('SET', key, ARGV[last], 'EX', ARGV[at + 3], 'NX')
    redis.pcall('PUBLISH', key, ARGV[last])
  elseif name == 'STATES' then
    for number = at + 6, last do
      local job = ARGV[number]
      local text = ARGV[at + 4] .. job .. ARGV[at + 5]
      answer = redis.pcall('SETEX', key .. job, ARGV[at + 3], text)
      redis.pcall('PUBLISH', key .. job, text)
    end
  else
    answer = redis.pcall(unpack(ARGV, at + 1, last))
  end
  if type(answer) == 'table' and answer.err and not failed then failed = answer.err end
  at = last + 1
end
return failed
"""
_BEAT = "local now = redis.call('TIME') return redis.call('ZADD', KEYS[1], now[1] + now[2] / 1000000, ARGV[1])"
_REJECTED_KEPT = 1000
_REJECTED_HEAD_BYTES = 2048


class Outbox:
    """Collects commands in the order in which they go out.

    `result_ttl_seconds`: how long states and streams stay. `epoch`: of the leader that says it.
    """

    def __init__(self, result_ttl_seconds: int, epoch: int) -> None:
        self.result_ttl_seconds, self.epoch = result_ttl_seconds, epoch
        self._commands: list[tuple[Any, ...]] = []
        self._acks: dict[str, list[Ack]] = {}
        self._recorded: dict[str, list[str]] = {}
        self._beats: list[str] = []
        #: what Celery says by itself, with round trips of its own, once everything else is sent
        self.last_words: deque[LastWord] = deque()

    def __len__(self) -> int:
        return len(self._commands) + len(self._acks) + len(self._recorded) + len(self._beats) + len(self.last_words)

    def state(
        self, job_id: str, state: str, result: Any, *, traceback: str | None = None, only_if_none: bool = False
    ) -> None:
        """The job's state in Celery's result backend; `only_if_none` leaves one that is there alone."""
        verb, text = _STATE_IF_NONE if only_if_none else _STATE, _as_celery_keeps(job_id, state, result, traceback)
        self._commands.append((verb, STATE_PREFIX + job_id, self.result_ttl_seconds, text))

    def states(self, job_ids: list[str], state: str, result: Any) -> None:
        """One state of many jobs."""
        before, after = _as_celery_keeps(_ID, state, result).split(_ID)
        for start in range(0, len(job_ids), _IDS_PER_COMMAND):
            some = job_ids[start : start + _IDS_PER_COMMAND]
            self._commands.append((_STATES, STATE_PREFIX, self.result_ttl_seconds, before, after, *some))

    def failure(
        self, job_id: str, error: Exception, traceback: str | None = None, *, only_if_none: bool = False
    ) -> None:
        """FAILURE in the result backend, with an exception that `AsyncResult.get()` raises."""
        written = _as_celery_writes(error)
        self.state(job_id, FAILURE, written, traceback=traceback, only_if_none=only_if_none)

    def retry(self, job_id: str, error: Exception, traceback: str | None = None) -> None:
        """RETRY in the result backend, with what made it necessary, as Celery shows it."""
        self.state(job_id, RETRY, _as_celery_writes(error), traceback=traceback)

    def revoked(self, job_id: str, reason: str) -> None:
        """REVOKED in the result backend."""
        self.state(job_id, REVOKED, _as_celery_writes(TaskRevokedError(reason)))

    def last_word(self, job_id: str, message: StoredMessage | None, outcome: Outcome) -> None:
        """How a job ended, for whoever looks at it in Celery or waits for it there."""
        word = awaited(message, outcome) if message is not None else None
        if word is not None:
            self.last_words.append(word)
        elif message is None or not message.headers.get("ignore_result"):
            match outcome.state:
                case JobState.COMPLETED:
                    self.state(job_id, SUCCESS, outcome.result)
                case JobState.FAILED:
                    self.failure(job_id, outcome.error, outcome.traceback)
                case _:
                    self.revoked(job_id, outcome.message)

    def update(self, job_id: str, update: Update) -> None:
        """One entry of the job's progress stream; after one of kind "end" the stream lives on for a while only."""
        self._commands.append(("XADD", progress_key(job_id), "*", "update", update.model_dump_json(exclude_none=True)))
        if update.kind == "end":
            self._commands.append(("EXPIRE", progress_key(job_id), self.result_ttl_seconds))

    def to_node(self, node_id: str, message: str) -> None:
        """A Celery message into a node's queue."""
        self._commands.append(("LPUSH", node_queue(node_id), message))

    def command(self, *command: Any) -> None:
        """Any one command of Redis."""
        self._commands.append(command)

    def beat(self, node_id: str) -> None:
        """Count a node as just heard."""
        self._beats.append(node_id)

    def control(self, node_id: str, control: Message) -> None:
        self._commands.append(("LPUSH", control_key(node_id), control.model_dump_json()))
        self._commands.append(("EXPIRE", control_key(node_id), CONTROL_TTL_SECONDS))

    def ack(self, reply_to: str | None, ack: Ack) -> None:
        """The word on one submission; those for one key go out as one message."""
        if reply_to is not None:
            self._acks.setdefault(reply_to, []).append(ack)

    def recorded(self, reply_to: str | None, job_id: str) -> None:
        """The usual word on one submission: it is recorded under its own id."""
        if reply_to is not None:
            self._recorded.setdefault(reply_to, []).append(job_id)

    def reply(self, reply_to: str | None, reply: Message) -> None:
        if reply_to is not None:
            self._commands.append(("LPUSH", reply_to, reply.model_dump_json()))
            self._commands.append(("EXPIRE", reply_to, REPLY_TTL_SECONDS))

    def reject(self, source: str, raw: bytes, reason: str) -> None:
        """Put a message that nobody could read where a person can look at its head."""
        entry = {
            "source": source,
            "reason": reason,
            "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
            "head": raw[:_REJECTED_HEAD_BYTES].decode("utf-8", "replace"),
            "at": time.time(),
        }
        self._commands.append(("LPUSH", REJECTED, json.dumps(entry)))
        self._commands.append(("LTRIM", REJECTED, 0, _REJECTED_KEPT - 1))

    def write(self, pipe: redis.client.Pipeline) -> None:
        """Add everything to a pipeline, acks last: whoever reads one finds all the rest.

        Each script answers with the error of its first command that failed, FENCED, or with nothing.
        """
        for reply_to in self._acks | self._recorded:
            acks, recorded = self._acks.get(reply_to, ()), self._recorded.get(reply_to, ())
            self.reply(reply_to, Acks(recorded=tuple(recorded), acks=tuple(acks)))
        self._acks.clear()
        self._recorded.clear()
        words: list[Any] = []
        for command in self._commands:
            words.append(len(command))
            words += command
            if len(words) >= _WORDS_PER_SCRIPT:
                pipe.eval(_SAY, 1, EPOCH, self.epoch, *words)
                words = []
        if words:
            pipe.eval(_SAY, 1, EPOCH, self.epoch, *words)
        for node_id in self._beats:
            pipe.eval(_BEAT, 1, BEATS, node_id)


def _as_celery_keeps(job_id: str, state: str, result: Any, traceback: str | None = None) -> str:
    done_at = datetime.now(UTC).isoformat() if state in READY_STATES else None
    meta = {"status": state, "result": result, "traceback": traceback, "children": [], "date_done": done_at}
    return json.dumps(meta | {"task_id": job_id})


def _as_celery_writes(error: Exception) -> dict[str, Any]:
    kind = type(error)
    return {"exc_type": kind.__qualname__, "exc_message": [str(error)], "exc_module": kind.__module__}
