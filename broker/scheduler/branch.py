"""Waiting work as a tree: priorities, in each its projects, in each its owners, in each its queues.

Whoever is served next is found by going down, at each level to the first child under which somebody may be served. That
is told by sets of shapes, an integer with one bit a shape (`broker/scheduler/shapes.py`), so a whole project whose jobs
fit nowhere now is passed over in one step.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from broker.scheduler.backlog import Queue
    from broker.scheduler.fair_share import Account

Child = Union["Branch", "Queue"]
#: what children are sorted by, a number of the child's own (so that children are never compared), the child
Place = tuple[float, int, Any]


class Branch:
    __slots__ = ("_opened", "account", "children", "name", "order", "parent", "place", "shapes")

    def __init__(self, parent: Branch | None, name: Any, account: Account | None = None) -> None:
        self.parent, self.name, self.account = parent, name, account
        #: its own in the order of its parent
        self.place: Place | None = None
        self.children: dict[Any, Child] = {}
        #: the one to be served first at the front
        self.order: list[Place] = []
        #: of all that waits below; None: to be found out anew, and then that is so for its parents too
        self.shapes: int | None = 0
        self._opened = 0

    def __iter__(self) -> Iterator[Any]:
        """Its children, the one to be served first at the front."""
        return (place[2] for place in self.order)

    def open(self, child: Child, key: float) -> None:
        """Add a child."""
        self.children[child.name] = child
        self.put(child, key)
        self.changed()

    def put(self, child: Child, key: float) -> None:
        """Let a child be served behind those with a lower key, and among equals in the order in which they came."""
        old = child.place
        if old is None:
            self._opened += 1
            number = self._opened
        elif old[0] == key:
            return
        else:
            del self.order[bisect_left(self.order, old)]
            number = old[1]
        place = child.place = (key, number, child)
        insort(self.order, place)

    def close(self, child: Child) -> None:
        """Remove a child, and whoever has none left."""
        assert child.place is not None
        del self.order[bisect_left(self.order, child.place)], self.children[child.name]
        child.place = None
        self.changed()

    def changed(self) -> None:
        """Other shapes wait below than before."""
        branch: Branch | None = self
        while branch is not None and branch.shapes is not None:
            branch.shapes = None
            branch = branch.parent
