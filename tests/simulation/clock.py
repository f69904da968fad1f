"""The one seam of a simulation: while it lasts, modules of the product see another `time`, `log` and `db`.

No code of the product knows of it. Every module of `broker`, `db` and `cyxwiz_tasks` that has imported `time`, or has a
logger, gets a stand-in of that name; and where such a module holds a function of `db` that has a twin in
`tests.simulation.memory_db`, it gets the twin. What has no twin fails at once: a `Tx` in memory executes no SQL.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from tests.simulation import memory_db
from tests.simulation.world import Unsimulated, World

#: what clocks show when a simulation begins
WALL_SECONDS, MONOTONIC_SECONDS = 1_800_000_000.0, 1000.0
#: Redis took a part of a pipeline, as one that is full does
_EXPECTED_ERRORS = ("event=redis_refused",)
_TWINS = (
    *("jobs", "new_jobs", "waiting_jobs", "job_messages", "job_pages", "attempts", "outcomes", "gangs", "preemptions"),
    *("nodes", "known_nodes", "metrics", "retention", "usage", "limits", "quotas"),
    *("dependencies", "arrays", "schedules"),
)


class SimulatedTime:
    """What a module sees as `time`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def time(self) -> float:
        return WALL_SECONDS + self._world.now

    def monotonic(self) -> float:
        return MONOTONIC_SECONDS + self._world.now

    def __getattr__(self, name: str) -> Any:
        raise Unsimulated(f"time.{name}: the simulation has no such thing")


class SimulatedLog:
    """What a module sees as its `log`: an error in there is one that nobody planned."""

    def __init__(self, world: World) -> None:
        self._world = world

    def error(self, message: str, *_: Any) -> None:
        self._world.check(message.startswith(_EXPECTED_ERRORS), f"the scheduler logs an error: {message}")

    def exception(self, message: str, *_: Any) -> None:
        self._world.check(False, f"the scheduler logs an error: {message}\n{traceback.format_exc()}")

    def info(self, *_: Any) -> None:
        """Of no interest."""

    debug = warning = info


@contextmanager
def simulated(world: World, **others: Any) -> Iterator[None]:
    """Let the product live in `world`; `others` are stand-ins for functions outside `_TWINS`, by their names."""
    stand_in, log = SimulatedTime(world), SimulatedLog(world)
    twins = _twins() | {_original(name): twin for name, twin in others.items()}
    undo: list[tuple[ModuleType, str, Any]] = []
    for module in [m for name, m in sys.modules.items() if name.startswith(("broker.", "db.", "cyxwiz_tasks."))]:
        for name, value in list(vars(module).items()):
            new: Any = twins.get(value) if isinstance(value, FunctionType) else None
            if value is time:
                new = stand_in
            elif isinstance(value, logging.Logger):
                new = log
            if new is not None:
                undo.append((module, name, value))
                setattr(module, name, new)
    try:
        yield
    finally:
        for module, name, value in undo:
            setattr(module, name, value)


def _twins() -> dict[FunctionType, FunctionType]:
    found = {}
    for name in _TWINS:
        twin = importlib.import_module(f"{memory_db.__name__}.{name}")
        real = importlib.import_module(f"db.{name}")
        for function in vars(twin).values():
            if isinstance(function, FunctionType) and function.__module__ == twin.__name__:
                original = vars(real).get(function.__name__)
                if isinstance(original, FunctionType) and not function.__name__.startswith("_"):
                    found[original] = function
    return found


def _original(dotted: str) -> Any:
    module, _, name = dotted.replace("__", ".").rpartition(".")
    return getattr(importlib.import_module(module), name)
