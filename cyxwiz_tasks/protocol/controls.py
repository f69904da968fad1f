"""Scheduler -> one node: what it is told to do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from cyxwiz_tasks.protocol.message import Message


class Stop(Message):
    """End an attempt: ask its process, wait `grace_seconds`, end its whole process tree, report `outcome`."""

    kind: Literal["stop"] = "stop"
    job: str
    token: int
    outcome: Literal["cancelled", "preempted"] = "cancelled"
    grace_seconds: float = 2.0
    #: for the job's log and its record: what its place is needed for
    reason: str = ""
    #: nobody told the node, which stops itself
    by_node: bool = False


class RegisterAgain(Message):
    """The scheduler does not know this incarnation of the node (any more)."""

    kind: Literal["register_again"] = "register_again"


Control = Annotated[Stop | RegisterAgain, Field(discriminator="kind")]
CONTROL: TypeAdapter[Control] = TypeAdapter(Control)
