"""Exceptions that a job's process raised, for Celery to store: under the user's own type, with the job's traceback.

The user's class is not here and must not be imported here, so a stand-in of the same name is raised. Celery stores
module, name and arguments of an exception; whoever calls `get()` has the class and gets that very one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from cyxwiz_tasks.runtime.pipe import Frame, relayed_value


class RemoteTraceback(Exception):
    """The cause of a stand-in: the traceback as the job's process printed it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class _StandIn(Exception):
    """Base of all stand-ins: never a class that Celery or this process treats as special."""

    # Celery stores what survives pickling inside the worker, and replaces what does not.
    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self).__module__, type(self).__qualname__, self.args)


@lru_cache(maxsize=1024)
def _class_of(module: str, qualname: str) -> type[_StandIn]:
    return type(qualname.rpartition(".")[2], (_StandIn,), {"__module__": module, "__qualname__": qualname})


def _again(module: str, qualname: str, args: tuple[Any, ...]) -> _StandIn:
    return _class_of(module, qualname)(*args)


def stand_in(frame: Frame) -> Exception:
    """The exception that a frame describes, with its traceback as the cause."""
    raised = _again(frame["module"], frame["type"], tuple(relayed_value(frame["args"])))
    if text := frame.get("traceback"):
        raised.__cause__ = RemoteTraceback(text)
    return raised
