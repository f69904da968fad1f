"""What comes in for the leader: batches out of Redis lists, of which a crash loses nothing.

One thread per list waits in BLMOVE, which moves a message into a processing list of this epoch in the same step, and
then moves up to `BATCH` more by one script. The main loop gets the batches from an in-process queue. Once a batch is
in the record and its consequences are published, its messages are removed from the processing list, by the command
that `forget` adds to the same pipeline. Whatever a dead leader left in a processing list is given back to the list it
came from, in its old order, so that a message that was half handled is handled again: every handler is idempotent.

A leader that was frozen may move one more message after its successor has looked, so successors look again from time
to time, and `forget` removes messages only if they are still the oldest of the list.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
from kombu.transport.redis import PRIORITY_STEPS, Channel

from broker.scheduler.log_lines import line
from broker.scheduler.outbox import EPOCH
from cyxwiz_tasks import failpoints
from cyxwiz_tasks.errors import NotLeader
from cyxwiz_tasks.protocol.names import COMMANDS, INBOX, REPORTS

log = logging.getLogger(__name__)

#: most messages that one batch takes; LPUSH with unpack() in a script is limited to a few thousand
BATCH = 500
#: the lists of Celery's queue `cyxwiz.inbox`, by kombu's naming: the plain one, and one per priority step
INBOX_LISTS = tuple(f"{INBOX}{Channel.sep}{step}" if step else INBOX for step in PRIORITY_STEPS)
SOURCES = (*INBOX_LISTS, REPORTS, COMMANDS)
#: the processing lists are called after it, the epoch, and the number of their source
PROCESSING = "cyxwiz.busy"

#: whatever a leader of so many epochs ago has left was given back by those after it; if not, its lists are found by
#: their names: see `Ghosts`
_EPOCHS_LOOKED_AT = 50
_LIST_NAME = re.compile(rf"{re.escape(PROCESSING)}\.(\d{{1,18}})\.\d+")

_BLOCK_SECONDS = 0.25
#: batches that may wait for the main loop; more stay in Redis, where they survive
_WAITING_BATCHES = 4

_DRAIN = """
local taken = redis.call('RPOP', KEYS[1], ARGV[1])
if not taken then return {} end
redis.call('LPUSH', KEYS[2], unpack(taken))
return taken
"""
# A new leader is said to lead here, too, so that the one before it says nothing more.
_LEAD = """
local leads = redis.call('GET', KEYS[1])
if leads and tonumber(leads) > tonumber(ARGV[1]) then return -tonumber(leads) end
redis.call('SET', KEYS[1], ARGV[1])
return leads and 0 or 1
"""
# The newest message lies at the left end; from there, one by one, it goes back to the right end of its source. The
# lists are looked for by their names: whatever lists the names could be lost with Redis' memory, and the messages not.
_GIVE_BACK = """
local moved = 0
for epoch = ARGV[1], ARGV[2] do
  for number = 3, #ARGV do
    local list = KEYS[1] .. '.' .. string.format('%d', epoch) .. '.' .. (number - 3)
    while redis.call('LMOVE', list, ARGV[number], 'LEFT', 'RIGHT') do moved = moved + 1 end
  end
end
return moved
"""
_FORGET = """
if redis.call('LINDEX', KEYS[1], -1) ~= ARGV[1] or redis.call('LINDEX', KEYS[1], -ARGV[3]) ~= ARGV[2] then return 0 end
redis.call('LTRIM', KEYS[1], 0, -ARGV[3] - 1)
return 1
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages of one source, oldest first, and what the source's reader made of each; empty if it has none."""

    source: str
    messages: list[bytes]
    readings: list[Any] = field(default_factory=list)

    def singles(self) -> Iterator[Batch]:
        """The same messages, each as a batch of its own."""
        for number, message in enumerate(self.messages):
            yield Batch(self.source, [message], self.readings[number : number + 1])


def processing_list(epoch: int, source: str) -> str:
    """Where one leader keeps what it has taken from a source and not yet finished."""
    return f"{PROCESSING}.{epoch}.{SOURCES.index(source)}"


class Inbox:
    """The sources of one leader. `connect` makes a client that never repeats a command by itself.

    `readers` are called in the source's thread, while the main loop waits for the database, and never raise.
    """

    def __init__(
        self,
        connect: Callable[[], redis.Redis],
        epoch: int,
        readers: Mapping[str, Callable[[bytes], Any]],
    ) -> None:
        self.connect, self.epoch, self.readers = connect, epoch, readers
        self._batches: queue.Queue[Batch | redis.RedisError] = queue.Queue(_WAITING_BATCHES)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._answered_at = time.monotonic()
        self._unanswered_seconds = 0.0

    def start(self) -> None:
        """Take from all sources."""
        self._stop, self._batches = threading.Event(), queue.Queue(_WAITING_BATCHES)
        self._answered_at = time.monotonic()
        self._threads = [
            threading.Thread(target=self._watch, args=(source,), name=f"source-{source}", daemon=True)
            for source in SOURCES
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take nothing more; what was taken and not forgotten stays in the processing lists."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def take(self, timeout_seconds: float, limit: int = 2 * BATCH) -> list[Batch]:
        """Everything that has arrived, up to about `limit` messages; waits for the first one.

        Raises redis.RedisError once a source has lost its connection.
        """
        batches: list[Batch] = []
        count = 0
        try:
            item = self._batches.get(timeout=timeout_seconds) if timeout_seconds > 0 else self._batches.get_nowait()
            while True:
                if isinstance(item, redis.RedisError):
                    raise item
                batches.append(item)
                count += len(item.messages)
                if count >= limit:
                    return batches
                item = self._batches.get_nowait()
        except queue.Empty:
            return batches

    def unanswered_seconds(self) -> float:
        """The longest time since this was asked last in which Redis answered none of the sources.

        They ask it four times a second, also while the main loop is busy.
        """
        longest = max(self._unanswered_seconds, time.monotonic() - self._answered_at)
        self._unanswered_seconds = 0.0
        return longest

    def forget(self, pipe: redis.client.Pipeline, batch: Batch) -> None:
        """Remove a finished batch from its processing list. The command answers 0 if the list is not as expected."""
        keys = (processing_list(self.epoch, batch.source),)
        pipe.eval(_FORGET, 1, *keys, batch.messages[0], batch.messages[-1], len(batch.messages))

    def lead(self, client: redis.Redis) -> bool:
        """Say in Redis that this epoch leads. True: Redis knew of no epoch, it is new or has lost its memory.

        Raises NotLeader if a leader of a later epoch was here.
        """
        answer: Any = client.eval(_LEAD, 1, EPOCH, self.epoch)
        if answer < 0:
            message = f"epoch {self.epoch} is over, epoch {-answer} leads: stop and stand by"
            raise NotLeader(message, epoch=self.epoch, current=-answer)
        return bool(answer)

    def give_back(self, client: redis.Redis, *, own: bool = False) -> int:
        """Return what older leaders left unfinished to its sources; with `own`, also what this one left.

        `own` only while the sources are stopped.
        """
        oldest, newest = max(0, self.epoch - _EPOCHS_LOOKED_AT), self.epoch if own else self.epoch - 1
        return self._give_back(client, oldest, newest)

    def give_back_of_old(self, client: redis.Redis, lists: Sequence[str]) -> int:
        """The same of lists that were found by their names: those of leaders before the ones that `give_back` looks at,
        where all after them ended before they could.
        """
        found = (_LIST_NAME.fullmatch(name) for name in lists)
        epochs = {int(match[1]) for match in found if match is not None}
        oldest = self.epoch - _EPOCHS_LOOKED_AT
        return sum(self._give_back(client, epoch, epoch) for epoch in sorted(epochs) if epoch < oldest)

    def _give_back(self, client: redis.Redis, oldest: int, newest: int) -> int:
        moved: Any = client.eval(_GIVE_BACK, 1, PROCESSING, oldest, newest, *SOURCES)
        return int(moved)

    def _watch(self, source: str) -> None:
        busy = processing_list(self.epoch, source)
        stop, batches = self._stop, self._batches
        try:
            with self.connect() as client:
                drain = client.register_script(_DRAIN)
                while not stop.is_set():
                    first: Any = client.blmove(source, busy, _BLOCK_SECONDS, "RIGHT", "LEFT")
                    self._answered()
                    if first is None:
                        continue
                    failpoints.hit("scheduler.moved")
                    # The main loop starts on the first message while the script looks for more.
                    self._hand_over(stop, batches, self._read(source, [first]))
                    time.sleep(0)  # lets go of the interpreter, for which the main loop waits
                    while rest := drain(keys=[source, busy], args=[BATCH]):
                        self._hand_over(stop, batches, self._read(source, rest))
                        if stop.is_set():
                            return
        except redis.RedisError as error:
            self._hand_over(stop, batches, error)
        except Exception as error:
            # A source that dies in silence would never be read again.
            log.exception(line("source_failed", source=source))
            self._hand_over(stop, batches, redis.RedisError(f"the source {source} failed: {type(error).__name__}"))

    def _answered(self) -> None:
        now = time.monotonic()
        self._unanswered_seconds = max(self._unanswered_seconds, now - self._answered_at)
        self._answered_at = now

    def _read(self, source: str, messages: list[bytes]) -> Batch:
        reader = self.readers.get(source)
        return Batch(source, messages, [reader(message) for message in messages] if reader is not None else [])

    @staticmethod
    def _hand_over(
        stop: threading.Event, batches: queue.Queue[Batch | redis.RedisError], item: Batch | redis.RedisError
    ) -> None:
        while not stop.is_set():
            try:
                batches.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
