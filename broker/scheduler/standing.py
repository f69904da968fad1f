"""How far a node is trusted: its reputation, and quarantine after repeated faults.

Reputation is 0 to 1. Each attempt that a node carried to its job's end moves it 5 % of the way to 1; each one that the
node lost or spoiled moves it 20 % of the way to 0. So one loss weighs about as much as five good attempts, and old
history fades. Ends that the job itself is to blame for (its exception, its memory, its time) and cancellations say
nothing of the node.

A node where no job has completed yet is tried on small ones: one of several GPUs goes there only while no other node
has room for it.

Faults are counted from one success to the next. Too many put a node into quarantine: it gets no new work for a while,
then it is on probation: a success clears it, one more fault puts it back for twice as long.

Quarantine keeps jobs from a node that would break them while another one could run them. Where no node without a cordon
ever could, it would only let them wait beside hardware that is there: then the node gets one of them at a time, as a
last resort. A success ends the quarantine; what fails there meanwhile is not counted.

Whom to blame for a crash or a hang? The first one of a job counts against its node, the others of the same job count
against the job: a poison job costs each node it meets nothing, and the first one a single fault. And where the same
task has just crashed on other nodes, it is the task: a hundred jobs of one broken program put no node away.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from broker.scheduler.log_lines import line
from broker.scheduler.turn import Turn
from cyxwiz_tasks.states import Cause
from db import attempts, nodes
from db.models import Cordon

log = logging.getLogger(__name__)

_GAIN, _LOSS = 0.05, 0.2
#: smaller moves are not worth a statement
_NOTICEABLE = 0.001
#: ends of an attempt for which the job or the node may be to blame
SUSPICIOUS = frozenset({Cause.CRASHED, Cause.HUNG})
#: in one turn: each is a look at some thousands of attempts
_LOOKED_AT = 32
_LONGEST_QUARANTINE_SECONDS = 24 * 3600.0


def carried_to_its_end(turn: Turn, node_id: str) -> None:
    """A job completed there: the node is trusted again. A drain stays, with what was counted before it."""
    _move(turn, node_id, towards=1.0, share=_GAIN)
    cluster = turn.memory.cluster
    if node_id not in cluster:
        return
    node = cluster.node(node_id)
    if not node.tried:
        nodes.note_tried(turn.tx, node_id)
        cluster.set_tried(node_id)
    if node.cordon == Cordon.DRAINING or not (node.faults or node.quarantines):
        return
    if node.cordon == Cordon.QUARANTINED:
        nodes.uncordon(turn.tx, turn.epoch, node_id, forgive=False)
        cluster.set_cordon(node_id, None)
        log.info(line("node_cleared", node=node_id, name=node.name))
    node.faults = node.quarantines = 0
    nodes.count_faults(turn.tx, {node_id: (0, 0)})


def died(turn: Turn, node_id: str, incarnation: str, reason: str) -> None:
    """An agent is gone and has lost what ran there: one fault, however many jobs it was and however one hears of it."""
    cluster = turn.memory.cluster
    if node_id in cluster and (node := cluster.node(node_id)).blamed != incarnation:
        node.blamed = incarnation
        broke_jobs(turn, node_id, reason)


def broke_jobs(turn: Turn, node_id: str, reason: str) -> None:
    """The node itself lost or spoiled what ran there."""
    _move(turn, node_id, towards=0.0, share=_LOSS)
    _count_fault(turn, node_id, reason)


def suspect(turn: Turn, ended: Sequence[tuple[int, str]]) -> None:
    """Token and node of attempts that ended by a crash or a hang, each the first of its job: count those for which the
    node may be to blame.
    """
    tokens: list[int] = []
    looked_at: Counter[str] = Counter()
    for token, node_id in ended:
        looked_at[node_id] += 1
        if looked_at[node_id] <= turn.settings.quarantine_faults and len(tokens) < _LOOKED_AT:
            tokens.append(token)
    for node_id, cause in attempts.blamed(turn.tx, tokens, sorted(SUSPICIOUS)):
        _count_fault(turn, node_id, f"a job {'hung' if cause == Cause.HUNG else cause} there")


def suspect_member(turn: Turn, token: int, node_id: str) -> None:
    """The same for a member of a gang; `token` is its gang's, whose attempt names the node of rank 0 alone."""
    for _, cause in attempts.blamed(turn.tx, [token], sorted(SUSPICIOUS)):
        _count_fault(turn, node_id, f"a job {'hung' if cause == Cause.HUNG else cause} there")


def _count_fault(turn: Turn, node_id: str, reason: str) -> None:
    cluster = turn.memory.cluster
    if node_id not in cluster or cluster.node(node_id).cordon is not None:
        return
    node = cluster.node(node_id)
    node.faults += 1
    nodes.count_faults(turn.tx, {node_id: (node.faults, node.quarantines)})
    on_probation = node.quarantines > 0
    if not on_probation and node.faults < turn.settings.quarantine_faults:
        return
    longest = turn.settings.quarantine_seconds * 2.0 ** min(node.quarantines, 30)
    seconds = min(longest, max(_LONGEST_QUARANTINE_SECONDS, turn.settings.quarantine_seconds))
    what = "one more on probation" if on_probation else f"{node.faults} without a success in between"
    if nodes.cordon(turn.tx, turn.epoch, node_id, Cordon.QUARANTINED, seconds, f"faults: {what}; the last: {reason}"):
        node.quarantines += 1
        cluster.set_cordon(node_id, Cordon.QUARANTINED)
        turn.counts["quarantined"] += 1
        log.warning(line("node_quarantined", node=node_id, name=node.name, seconds=seconds, reason=reason))


def _move(turn: Turn, node_id: str, towards: float, share: float) -> None:
    cluster = turn.memory.cluster
    if node_id not in cluster:
        return
    node = cluster.node(node_id)
    change = (towards - node.reputation) * share
    if abs(change) >= _NOTICEABLE:
        cluster.set_standing(node_id, node.reputation + change, node.uptime)
        nodes.rate(turn.tx, {node_id: node.reputation})
