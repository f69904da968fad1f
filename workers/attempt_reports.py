"""What one attempt says of itself, gathered until the reporter writes it: progress, states, output, metrics."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cyxwiz_tasks.protocol.headers import Assignment
from cyxwiz_tasks.protocol.names import REPORTS, log_key, progress_key
from cyxwiz_tasks.protocol.reports import Started
from cyxwiz_tasks.protocol.updates import Update
from cyxwiz_tasks.states import PROGRESS, STARTED

Command = tuple[Any, ...]

#: How often each may be written, in seconds: Celery's state, the record's history, Flower's event.
_STATE_SECONDS, _METRICS_SECONDS, _EVENT_SECONDS = 0.1, 1.0, 0.5
#: What is kept while Redis is away, or of a job that reports faster than anybody reads.
_MAX_UPDATES = 2_000
_MAX_OUTPUT_CHARACTERS = 4 * 2**20
#: what Redis keeps of one job's progress, about: so many entries, fewer where these are long
_STREAM_ENTRIES, _STREAM_BYTES = 20_000, 16 * 2**20
#: of how many of the last reports the mean length counts, about
_USUAL_OF = 500

_Row = tuple[float, dict[str, Any]]


class Taken(NamedTuple):
    commands: list[Command]
    #: what Flower should show, if it is time for that
    event: str | None
    #: whether nothing follows
    last: bool


class AttemptReports:
    """Filled by the attempt's thread, emptied by the reporter's."""

    def __init__(
        self,
        assignment: Assignment,
        node_name: str,
        *,
        ttl_seconds: int,
        wake: Callable[[], None],
        state_commands: Callable[[str, dict[str, Any]], list[Command]],
        show: Callable[[str], None],
    ) -> None:
        """`state_commands` makes what stores a Celery state; `show` puts a text into Flower, and never raises."""
        self._assignment, self._node_name, self._ttl_seconds = assignment, node_name, ttl_seconds
        # Of a gang, rank 0 speaks for the job; the others have a log.
        self._rank = assignment.gang.rank if assignment.gang is not None else 0
        self._wake, self._state_commands, self.show = wake, state_commands, show
        frame = Update(kind="progress", state=PROGRESS, node=node_name, attempt=assignment.attempt)
        self._update_frame = frame.model_dump(mode="json")
        self._lock = threading.Lock()
        self._first: list[Command] = []
        self._updates: list[_Row] = []
        self._metrics: list[_Row] = []
        self._output: list[str] = []
        self._output_characters = 0
        self._state: dict[str, Any] | None = None
        self._next_state = self._next_metrics = self._next_event = 0.0
        self._ended = False
        self._said, self._usual_bytes = 0, 0.0
        #: set once everything, up to `end`, is in Redis
        self.written = threading.Event()

    def started(self, pid: int, device: str) -> None:
        """The process has the job."""
        report = Started(**self.identity, pid=pid, device=device)
        update = Update(
            kind="state", state=STARTED, node=self._node_name, attempt=self._assignment.attempt, at=time.time()
        )
        meta = {"node": self._node_name, "attempt": self._assignment.attempt, "pid": pid, "device": device}
        with self._lock:
            self._first.append(("LPUSH", REPORTS, report.model_dump_json()))
            if not self._rank:
                self._first += [*self._state_commands(STARTED, meta), *self._stream(update)]
        self._wake()

    def progress(self, at: float, values: dict[str, Any]) -> None:
        """One `ctx.report()`."""
        if self._rank:
            return
        with self._lock:
            for rows in (self._updates, self._metrics):
                rows.append((at, values))
                if len(rows) > _MAX_UPDATES:
                    # Every other one goes, the newest stays: the curve keeps its shape.
                    del rows[-2::-2]
            self._state = values
        self._wake()

    def output(self, text: str) -> None:
        """Text for the job's log."""
        with self._lock:
            self._output.append(text)
            self._output_characters += len(text)
            while self._output_characters > _MAX_OUTPUT_CHARACTERS and len(self._output) > 1:
                dropped = self._output.pop(0)
                self._output_characters -= len(dropped)
                self._output[0] = "[... output is missing here: Redis was away ...]\n" + self._output[0]
        self._wake()

    def end(self) -> None:
        """Nothing follows, so all that has gathered is due."""
        with self._lock:
            self._ended = True

    def take(self, now: float) -> Taken:
        """What is due by now. Raises whatever the job's values make of it; those are gone then, and nothing else."""
        with self._lock:
            values, event = self._take_updates(), None
            if self._state is not None and (self._ended or now >= self._next_state):
                state, self._state, self._next_state = self._state, None, now + _STATE_SECONDS
                values += self._state_commands(PROGRESS, state)
                if now >= self._next_event:
                    self._next_event = now + _EVENT_SECONDS
                    event = progress_text(state)
            if self._metrics and (self._ended or now >= self._next_metrics):
                rows, self._metrics, self._next_metrics = self._metrics, [], now + _METRICS_SECONDS
                values.append(("LPUSH", REPORTS, self._metrics_report(rows)))
            commands, self._first = self._first, []
            return Taken([*commands, *self._take_output(), *values], event, self._ended)

    def due(self) -> float | None:
        """When something that has gathered may be written, by the monotonic clock."""
        with self._lock:
            times = []
            if self._state is not None:
                times.append(self._next_state)
            if self._metrics:
                times.append(self._next_metrics)
            return min(times, default=None)

    @property
    def identity(self) -> dict[str, Any]:
        """The fields with which every report of this attempt begins."""
        return self._assignment.identity

    def _take_updates(self) -> list[Command]:
        if not self._updates:
            return []
        key = progress_key(self._assignment.job)
        commands: list[Command] = []
        updates, self._updates = self._updates, []
        for at, values in updates:
            # The form of `Update`, without its validation: that took most of this thread's time.
            text = json.dumps(self._update_frame | {"at": at, "values": values})
            # By their mean of late: one long report must not push thousands of short ones out.
            self._usual_bytes += (len(text) - self._usual_bytes) / min(self._said + 1, _USUAL_OF)
            self._said += 1
            entries = min(_STREAM_ENTRIES, int(_STREAM_BYTES / self._usual_bytes))
            commands.append(("XADD", key, "MAXLEN", "~", entries, "*", "update", text))
        return [*commands, ("EXPIRE", key, self._ttl_seconds)]

    def _metrics_report(self, metrics: list[_Row]) -> str:
        rows = [{"at": at} | values for at, values in metrics]
        return json.dumps({"kind": "metrics", **self.identity, "rows": rows})

    def _stream(self, update: Update) -> list[Command]:
        key = progress_key(self._assignment.job)
        return [("XADD", key, "*", "update", update.model_dump_json()), ("EXPIRE", key, self._ttl_seconds)]

    def _take_output(self) -> list[Command]:
        key = log_key(self._assignment.job, self._rank)
        commands: list[Command] = []
        if self._output:
            commands.append(("XADD", key, "*", "text", "".join(self._output)))
            self._output, self._output_characters = [], 0
            commands.append(("EXPIRE", key, self._ttl_seconds))
        return commands


def progress_text(values: dict[str, Any]) -> str:
    """One line for Flower: "epoch 3/15 step 120/300 loss 0.1234 acc 0.98"."""
    parts = []
    for name, value in values.items():
        if value is None or isinstance(value, dict | list) or name in ("epochs", "steps", "total"):
            continue
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        if name == "epoch":
            whole = values.get("epochs")
        else:
            whole = (values.get("steps") or values.get("total")) if name == "step" else None
        parts.append(f"{name.replace('accuracy', 'acc')} {shown}" + (f"/{whole}" if whole is not None else ""))
    return " ".join(parts)[:200]
