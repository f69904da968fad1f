"""All nodes as the scheduler knows them, kept in step in two forms: a `Node` each, and columns over all of them.

A change of one node costs O(1). Two logs name the rows that changed: `changed` in anything, `described` where the node
itself is another. Whoever keeps something computed per node remembers how far it has read a log and catches up on those
rows alone. Rows where a job may fit now that did not before are `freed`, until all who wait have been asked about them.

A node in quarantine is a last resort: open for one job at a time, of a shape that no node without a cordon could ever
run. Which shapes those are changes with the other nodes, so whenever one of those changes, it counts as freed.

In memory only: nothing here does I/O, and nothing here is thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from broker.scheduler.acceptance import NOBODY_REFUSES, Refused, refused_by
from broker.scheduler.columns import Columns
from broker.scheduler.demand import Demand
from broker.scheduler.node import Holding, Kept, Node
from broker.scheduler.scoring import availability, normalised, standing
from broker.scheduler.shares import Totals
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.errors import InvalidSettings, NotFound
from cyxwiz_tasks.resources import PlacementPolicy, Resources
from db.models import Cordon, NodeState

#: One row's width is that of the node with most GPUs: a node that claimed a million would take the memory of all.
MAX_GPUS = 256
_LOG_ROWS = 8192
#: looked up once: reaching an enum's member costs more than comparing it
_UP = NodeState.UP


class ChangeLog:
    """Row numbers in the order in which they changed, with a bounded memory."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._start = 0
        self.end = 0

    def append(self, row: int) -> None:
        if len(self._rows) == _LOG_ROWS:
            self._start, self._rows = self.end, []
        self._rows.append(row)
        self.end += 1

    def since(self, position: int) -> list[int] | None:
        """The rows that changed since `end` was `position`, perhaps several times each; None: that is forgotten."""
        return None if position < self._start else self._rows[position - self._start :]


class Cluster:
    def __init__(
        self,
        weights: tuple[float, float, float, float] = (40.0, 30.0, 20.0, 10.0),
        placement: PlacementPolicy = "balanced",
    ) -> None:
        """`weights`: `settings().score_weights`. Raises InvalidSettings if they cannot weigh.

        `placement` is for jobs that name none.
        """
        self.weights, self.placement = normalised(weights), placement
        self.changed = ChangeLog()
        self.described = ChangeLog()
        #: rows of open nodes; emptied by the placer
        self.freed: set[int] = set()
        #: by row; None where a row is free
        self.rows: list[Node | None] = []
        #: conditions of nodes that are here, or were
        self.conditions: set[str] = set()
        #: grows when the columns get a new size
        self.size_version = 0
        #: nodes that take a job at all: see `Node.is_open`
        self.open_nodes = 0
        self._columns = Columns()
        #: rows whose columns are behind: most searches look at few nodes, and need no columns
        self._unwritten: set[int] = set()
        self._by_id: dict[str, Node] = {}
        self._free_rows: list[int] = []
        self._quarantined: dict[str, Node] = {}
        self._node_of_job: dict[str, Node] = {}
        self._totals = Totals()
        #: how far `described` was read when they were counted
        self._totals_at = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._by_id.values())

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._by_id

    @property
    def any_quarantined(self) -> bool:
        return bool(self._quarantined)

    @property
    def columns(self) -> Columns:
        """Everything about all nodes, as of now: to be asked for anew after a change."""
        while self._unwritten:
            self._columns.update(self.node_at(self._unwritten.pop()))
        return self._columns

    @property
    def totals(self) -> Totals:
        """What all nodes have together, whether or not they take work now."""
        if self._totals_at != self.described.end:
            self._totals_at = self.described.end
            able = [node.capability for node in self]
            self._totals = Totals(
                slots=sum(one.slots for one in able),
                gpus=sum(len(one.gpus) for one in able),
                gpu_memory_bytes=sum(node.gpu_memory_total for node in self),
                cpus=sum(one.cpu_cores for one in able),
                ram_bytes=sum(one.ram_bytes for one in able),
            )
        return self._totals

    def refusing(self, resources: Resources, applicant: Applicant) -> Refused:
        """The nodes' conditions that do not hold for a job."""
        return refused_by(self.conditions, resources, applicant) if self.conditions else NOBODY_REFUSES

    def node(self, node_id: str) -> Node:
        """Raises NotFound."""
        try:
            return self._by_id[node_id]
        except KeyError:
            raise NotFound(f"the scheduler knows no node {node_id}: `cyxwiz nodes` lists those it knows") from None

    def node_at(self, row: int) -> Node:
        node = self.rows[row]
        assert node is not None, f"row {row} belongs to no node"
        return node

    def node_of(self, job_id: str) -> Node | None:
        """The node on which a job holds its place, if it holds one."""
        return self._node_of_job.get(job_id)

    def upsert_node(
        self,
        node_id: str,
        name: str,
        capability: Capability,
        incarnation: str,
        *,
        state: NodeState = NodeState.UP,
        reputation: float = 1.0,
        uptime: float = 1.0,
        cordon: Cordon | None = None,
        opens_at: datetime | None = None,
        tried: bool = True,
    ) -> Node:
        """Add a node, or take over its new description. Its jobs keep what they hold until each is released.

        `opens_at`: it is outside its hours until then. `tried`: a job has completed there.

        `reputation` and `uptime` are 0..1. Raises InvalidSettings if it claims more than MAX_GPUS GPUs.
        """
        if len(capability.gpus) > MAX_GPUS:
            raise InvalidSettings(f"node {name} claims {len(capability.gpus)} GPUs: a node may have up to {MAX_GPUS}")
        node = self._by_id.get(node_id)
        if node is None:
            node = Node(self._free_rows.pop() if self._free_rows else len(self.rows), node_id)
            if node.row == len(self.rows):
                self.rows.append(None)
            self.rows[node.row] = self._by_id[node_id] = node
        if self._columns.make_room(len(self.rows), len(capability.gpus)):
            self.size_version += 1
        node.describe(name, capability, incarnation)
        if capability.accept is not None:
            self.conditions.add(capability.accept)
        node.state, node.reputation, node.uptime = state, _share(reputation), _share(uptime)
        self._put_cordon(node, cordon)
        node.opens_at, node.tried = opens_at, tried
        self._columns.describe(node)
        self.described.append(node.row)
        self._update(node)
        self._note_freed(node)
        self._reconsider_quarantined()
        return node

    def set_state(self, node_id: str, state: NodeState) -> None:
        """Only a node that is up gets work. Raises NotFound."""
        node = self.node(node_id)
        node.state = state
        self._update(node)
        self._note_freed(node)

    def set_cordon(self, node_id: str, cordon: Cordon | None) -> None:
        """A node with a cordon keeps what runs there and gets nothing new, but see above. Raises NotFound."""
        node = self.node(node_id)
        self._put_cordon(node, cordon)
        self.described.append(node.row)
        self._update(node)
        self._note_freed(node)
        self._reconsider_quarantined()

    def set_opening(self, node_id: str, opens_at: datetime | None) -> None:
        """Outside its hours a node keeps what runs there and gets nothing new. Raises NotFound."""
        node = self.node(node_id)
        node.opens_at = opens_at
        self._update(node)
        self._note_freed(node)

    def set_standing(self, node_id: str, reputation: float, uptime: float) -> None:
        """New reputation and uptime, 0..1. Raises NotFound."""
        node = self.node(node_id)
        node.reputation, node.uptime = _share(reputation), _share(uptime)
        self._update(node)

    def set_tried(self, node_id: str) -> None:
        """A job has completed there. Raises NotFound."""
        node = self.node(node_id)
        node.tried = True
        self.described.append(node.row)
        self._update(node)

    def remove_node(self, node_id: str) -> list[str]:
        """Forget a node that is lost or has left. Returns the jobs that held a place on it. Raises NotFound."""
        node = self.node(node_id)
        del self._by_id[node_id]
        self.open_nodes -= node.is_open
        self.rows[node.row] = None
        self._free_rows.append(node.row)
        for job_id in node.holdings:
            del self._node_of_job[job_id]
        self.freed.discard(node.row)
        self._unwritten.discard(node.row)
        self._columns.clear(node.row)
        self.described.append(node.row)
        self.changed.append(node.row)
        self._quarantined.pop(node_id, None)
        self._reconsider_quarantined()
        return list(node.holdings)

    def take(self, node_id: str, job_id: str, demand: Demand, gpu_indexes: tuple[int, ...]) -> None:
        """Book a job that was placed before, such as after a restart. Checks nothing; a place it held is given back.

        `gpu_indexes` are NVML's; those that the node no longer has are left out. Raises NotFound.
        """
        node = self.node(node_id)
        positions = tuple(node.gpu_indexes.index(index) for index in gpu_indexes if index in node.gpu_indexes)
        self.take_at(node, job_id, demand, positions)

    def take_at(self, node: Node, job_id: str, demand: Demand, positions: tuple[int, ...]) -> None:
        """Book a job on GPUs at these places of the node's list."""
        if job_id in self._node_of_job:
            self.release(job_id)
        node.take(job_id, Holding(demand, positions))
        self._node_of_job[job_id] = node
        self._update(node)

    def release(self, job_id: str) -> bool:
        """Give back what a job held. False if it held nothing: releasing twice does no harm."""
        node = self._node_of_job.pop(job_id, None)
        if node is None:
            return False
        node.release(job_id)
        self._update(node)
        self._note_freed(node)
        return True

    def keep(self, node: Node, job_id: str, kept: Kept | None) -> None:
        """Keep this on a node for a job that waits, in the place of what was kept before; None: nothing any more."""
        before = node.kept.get(job_id)
        if kept == before:
            return
        node.give_back(job_id)
        if kept is not None:
            node.keep(job_id, kept)
        self._update(node)
        if before is not None:
            self._note_freed(node)

    def _note_freed(self, node: Node) -> None:
        if node.is_open:
            self.freed.add(node.row)

    def _put_cordon(self, node: Node, cordon: Cordon | None) -> None:
        node.cordon = cordon
        if cordon == Cordon.QUARANTINED:
            self._quarantined[node.node_id] = node
        else:
            self._quarantined.pop(node.node_id, None)

    def _reconsider_quarantined(self) -> None:
        """Some node is another now, or gone: what could run there may have no other place any more, or again."""
        for node in self._quarantined.values():
            self._update(node)
            self._note_freed(node)

    def _update(self, node: Node) -> None:
        was_open = node.is_open
        takes_work = node.cordon is None or _is_last_resort(node)
        node.is_open = node.slots_free > 0 and node.state == _UP and node.opens_at is None and takes_work
        if not node.is_open:
            self.freed.discard(node.row)
        node.availability = availability(node)
        node.standing = standing(node, self.weights)
        node.most_gpu_free = max(0, *node.gpu_free) if node.gpu_free else 0
        self._unwritten.add(node.row)
        self.open_nodes += node.is_open - was_open
        self.changed.append(node.row)


def _is_last_resort(node: Node) -> bool:
    return node.cordon == Cordon.QUARANTINED and not node.holdings


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
