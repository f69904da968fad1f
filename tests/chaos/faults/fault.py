"""What every kind of fault looks like."""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.chaos.schedule import Kind, Planned
from tests.chaos.stack import LEASE_SECONDS, Member, Stack

#: clearly less than a lease, and clearly more
SHORT, LONG = (0.5, LEASE_SECONDS / 3), (LEASE_SECONDS + 2.0, LEASE_SECONDS + 5.0)
BLINK = (0.0, 0.0)
#: how long a fault waits for something to strike
PATIENCE_SECONDS = 15.0
#: a node that takes jobs has more
_CONNECTIONS_AT_WORK = 4


@dataclass
class Scene:
    """What faults strike: the stack, and what its jobs have written so far."""

    stack: Stack
    witness: Path
    #: set when the run is over, so that no fault waits on
    over: threading.Event

    def newest_steps(self, count: int = 400) -> list[dict[str, Any]]:
        """The newest lines of the witness file, newest first."""
        try:
            with open(self.witness, "rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - 200 * count))
                lines = file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return list(_readable(reversed(lines)))


def _readable(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the first one may begin before what was read


class Fault(ABC):
    """One fault: `inject`, wait, `heal`. Then `proof` says how it is known that it struck; empty: it did not."""

    kind: ClassVar[Kind]

    def __init__(self, scene: Scene, planned: Planned) -> None:
        self.scene, self.stack, self.planned = scene, scene.stack, planned
        self.proof: dict[str, Any] = {}

    @classmethod
    def missing(cls, stack: Stack) -> str | None:
        """What this machine lacks for it; None if nothing."""
        return None

    @abstractmethod
    def inject(self) -> None: ...

    def heal(self) -> None:  # noqa: B027 - most faults pass by themselves
        """Put right what does not pass by itself. Also called after an `inject` that failed."""

    @property
    def node(self) -> Member:
        return self.stack.node(self.planned.choice)

    def node_at_work(self) -> bool:
        """Whether the node runs and speaks to Redis; one that has just died is waited for."""
        return self.until(
            lambda: self.node.alive() and self.node.proxies["redis"].open >= _CONNECTIONS_AT_WORK, PATIENCE_SECONDS
        )

    def wait(self, seconds: float) -> bool:
        """Whether the run goes on after so long."""
        return not self.scene.over.wait(seconds)

    def until(self, condition: Any, seconds: float) -> bool:
        """Whether it came true within so long."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or self.scene.over.is_set():
                return bool(condition())
            time.sleep(0.02)
        return True
