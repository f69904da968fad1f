"""What this node has begun and must still tell, on disk: an attempt's end survives the agent that saw it.

One JSON object a line, appended: `begun` when a process has its job, `ended` with the whole report before it is first
sent, `told` once nobody waits for anything of that attempt any more: the scheduler has its end in the record, and
Celery knows of it. `owes` comes before the end of an attempt whose artifacts have to go to the artifact store, `sent`
once they are there, whether its end is told by then or not. At its next start an agent finds what its forerunner left
open.

An end is on the disk before it is sent (fdatasync), and what is owed with it. The others are left to the kernel, which
keeps them through any death of the agent; if the machine dies with it, a lost `begun` is a lease that ends, a lost
`told` a report that is sent twice, a lost `sent` a look at the store, and all do no harm. A disk that is full costs
what the journal is for, and nothing else: jobs go on.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyxwiz_tasks.protocol.reports import Ended

log = logging.getLogger(__name__)

#: The file is written anew when it has so many lines, and of those only few are open.
_COMPACT_LINES = 1_000


@dataclass(frozen=True)
class Begun:
    """An attempt whose process has its job."""

    node: str
    incarnation: str
    job: str
    attempt: int
    token: int
    pid: int
    #: when the process started, as `workers.process_tree.started_at` tells it, and in which run of the machine
    started: float | None
    boot: str
    #: "" in a journal of an older release
    device: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """The fields with which every report of this attempt begins."""
        return {name: getattr(self, name) for name in ("node", "incarnation", "job", "attempt", "token")}


class Journal:
    """For any thread. Only the worker that holds the node's folder opens it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._begun: dict[int, Begun] = {}
        self._ended: dict[int, Ended] = {}
        self._owed: dict[int, str] = {}
        self._lines = 0
        #: the file does not hold all that is open
        self._failing = False
        self._file: int | None = None
        self._read()
        self._compact()

    def interrupted(self) -> list[Begun]:
        """Attempts that began and have not ended."""
        with self._lock:
            return list(self._begun.values())

    def untold(self) -> list[Ended]:
        """Ends that somebody may not know of yet."""
        with self._lock:
            return list(self._ended.values())

    def unsent(self) -> dict[int, str]:
        """Artifacts that the artifact store may lack, by their attempt's token: the names of their folders."""
        with self._lock:
            return dict(self._owed)

    def begun(self, begun: Begun) -> None:
        with self._lock:
            self._begun[begun.token] = begun
            self._append({"begun": asdict(begun)})

    def owes(self, token: int, artifacts: str) -> None:
        """An attempt is about to end, and the artifact store must get this folder below the node's artifacts."""
        with self._lock:
            self._owed[token] = artifacts
            self._append({"owes": {"token": token, "artifacts": artifacts}})

    def sent(self, token: int) -> None:
        """The artifact store has what it must have of this attempt, or nobody has it any more."""
        with self._lock:
            if self._owed.pop(token, None) is not None:
                self._append({"sent": token})

    def ended(self, report: Ended) -> None:
        """Returns once the report is on the disk, or is known not to fit there."""
        with self._lock:
            self._begun.pop(report.token, None)
            self._ended[report.token] = report
            self._append({"ended": report.model_dump(mode="json", exclude_defaults=True)}, sync=True)

    def told(self, token: int) -> None:
        """Nothing is left to be told of this attempt."""
        with self._lock:
            begun, ended = self._begun.pop(token, None), self._ended.pop(token, None)
            if begun is None and ended is None:
                return
            self._append({"told": token})
            if self._lines > max(_COMPACT_LINES, 4 * (len(self._begun) + len(self._ended) + len(self._owed))):
                self._compact()

    def _read(self) -> None:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                self._apply(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                # The last line of an agent that was killed, or of a disk that was full.
                log.warning("%s: line %d cannot be read and is left out: %s", self._path, number, error)

    def _apply(self, entry: dict[str, Any]) -> None:
        """Raises ValueError and its like for what is no entry."""
        if "begun" in entry:
            begun = Begun(**entry["begun"])
            self._begun[begun.token] = begun
        elif "ended" in entry:
            report = Ended.model_validate(entry["ended"])
            self._begun.pop(report.token, None)
            self._ended[report.token] = report
        elif "owes" in entry:
            self._owed[int(entry["owes"]["token"])] = str(entry["owes"]["artifacts"])
        elif "sent" in entry:
            self._owed.pop(entry["sent"], None)
        else:
            self._begun.pop(entry["told"], None)
            self._ended.pop(entry["told"], None)

    def _append(self, entry: dict[str, Any], sync: bool = False) -> None:
        if self._failing:
            # What did not fit is still known here: write all of it anew, this entry with it.
            self._compact()
            return
        data = json.dumps(entry).encode() + b"\n"
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._write(data)
            self._lines += 1
            if sync:
                os.fdatasync(self._file)
        except OSError as error:
            self._complain(error)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        while data:
            # A full disk takes a part; the rest fails with the reason, and the file ends in the middle of a line.
            data = data[os.write(self._file, data) :]

    def _compact(self) -> None:
        """Write only what is open into a new file, and put that into the place of the old one."""
        entries: list[dict[str, Any]] = [{"begun": asdict(begun)} for begun in self._begun.values()]
        entries += [{"owes": {"token": token, "artifacts": name}} for token, name in self._owed.items()]
        entries += [{"ended": ended.model_dump(mode="json", exclude_defaults=True)} for ended in self._ended.values()]
        temporary = self._path.with_suffix(".new")
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                with open(file, "wb", closefd=False) as buffered:
                    buffered.writelines(json.dumps(entry).encode() + b"\n" for entry in entries)
                os.fsync(file)
                temporary.replace(self._path)
            except OSError:
                os.close(file)
                raise
        except OSError as error:
            self._complain(error)
            return
        if self._file is not None:
            os.close(self._file)
        self._file, self._lines, self._failing = file, len(entries), False

    def _complain(self, error: OSError) -> None:
        if not self._failing:
            log.error(
                "%s cannot be written (%s): an end that is not told yet would not survive this agent", self._path, error
            )
        self._failing = True


@functools.cache
def boot_id() -> str:
    """What tells this run of the machine from others; "" where the kernel has no name for it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
