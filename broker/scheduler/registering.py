"""Nodes come and go: registration, re-registration, leaving in order, and being given up.

A node is known by its id and, from one start of its agent to the next, by its incarnation. Attempts of an older
incarnation that the new one does not run are lost. Two machines with one id (a cloned disk) must not take turns, so a
new incarnation is only let in when the old one has stopped beating; its agent asks again until then.
"""

from __future__ import annotations

import logging
import time

from broker.scheduler import acceptance, opening, stopping
from broker.scheduler.demand import demand_of
from broker.scheduler.ending import lose
from broker.scheduler.log_lines import line
from broker.scheduler.standing import died
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import CyxwizError
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.names import BEATS, node_queue
from cyxwiz_tasks.protocol.reports import Left, Register, ReportReply, Stopping
from cyxwiz_tasks.states import Cause
from db import nodes
from db.models import Cordon, NodeState
from db.nodes import Registration

log = logging.getLogger(__name__)


def register(turn: Turn, report: Register) -> None:
    """Record a node as up, or as described anew."""
    cluster = turn.memory.cluster
    known = cluster.node(report.node) if report.node in cluster else None
    if known is not None and known.incarnation != report.incarnation and known.state == NodeState.UP:
        message = (
            f"node {report.node} beats already, as {known.name}: if that was this node a moment ago, ask again; "
            "if two machines share one home folder or a copy of it, give this one a folder of its own"
        )
        log.warning(line("node_refused", node=report.node, name=report.name, reason="beats already"))
        turn.outbox.reply(report.reply_to, ReportReply(committed=False, message=message))
        return
    try:
        acceptance.check(report.capability)
        opening.check(report.capability)
        registration = Registration(report.node, report.name, report.hostname, report.incarnation, report.capability)
        registered = nodes.register(turn.tx, turn.epoch, registration)
        node = cluster.upsert_node(
            report.node,
            report.name,
            report.capability,
            report.incarnation,
            state=NodeState.UP,
            reputation=registered.reputation,
            uptime=known.uptime if known is not None else 1.0,
            cordon=registered.cordon,
            opens_at=opening.Opening(time.time()).of(report.capability),
            tried=registered.tried,
        )
        node.faults, node.quarantines = registered.faults, registered.quarantines
        if known is None:
            _take_again(turn, report.node)
    except CyxwizError as error:
        log.warning(line("node_refused", node=report.node, reason=str(error)))
        turn.outbox.reply(report.reply_to, ReportReply(committed=False, message=str(error)))
        return
    if registered.incarnation_before not in (None, report.incarnation):
        gone = [name for name, live in turn.memory.on_node(report.node) if live.token not in report.running]
        if gone:
            died(turn, report.node, registered.incarnation_before or "", "its agent died with jobs on it")
        lose(turn, gone, Cause.NODE_LOST, f"node {report.name} started anew")
    _stop_what_is_not_current(turn, report)
    turn.outbox.beat(report.node)
    turn.outbox.reply(report.reply_to, ReportReply(committed=True))
    log.info(line("node_up", node=report.node, name=report.name, slots=report.capability.slots))


def _take_again(turn: Turn, node_id: str) -> None:
    """What this leader knew to run there, and not of what the node can do, holds its place from now on."""
    for name, live in turn.memory.on_node(node_id):
        turn.memory.cluster.take(node_id, name, demand_of(live.waiting.resources), live.gpus)


def stopping_soon(turn: Turn, report: Stopping) -> None:
    """The node gets nothing new, as one that is drained. Only memory knows: it is gone, or here again, in a moment."""
    cluster = turn.memory.cluster
    if report.node in cluster and cluster.node(report.node).incarnation == report.incarnation:
        cluster.set_cordon(report.node, Cordon.DRAINING)


def left(turn: Turn, report: Left) -> None:
    """The node stopped in order; what it had not ended waits again."""
    cluster = turn.memory.cluster
    current = report.node in cluster and cluster.node(report.node).incarnation == report.incarnation
    if current:
        give_up(turn, report.node, NodeState.LEFT)
    turn.outbox.reply(report.reply_to, ReportReply(committed=current))


def give_up(turn: Turn, node_id: str, state: NodeState) -> None:
    """A node is lost or has left: its attempts are taken back, and it gets nothing more until it registers again."""
    name = turn.memory.cluster.node(node_id).name
    nodes.mark(turn.tx, turn.epoch, [node_id], state, Cause.NODE_LOST if state == NodeState.LOST else None)
    gone = [name for name, _ in turn.memory.on_node(node_id)]
    if gone and state == NodeState.LOST:
        died(turn, node_id, turn.memory.cluster.node(node_id).incarnation, "it went silent with jobs on it")
    why = "has left" if state == NodeState.LEFT else "went silent"
    lose(turn, gone, Cause.NODE_LOST, f"node {name} {why}")
    turn.memory.cluster.remove_node(node_id)
    turn.outbox.command("ZREM", BEATS, node_id)
    # What it has not taken is placed again: should it come back, it must not begin that.
    turn.outbox.command("DEL", node_queue(node_id))
    log.info(line(f"node_{state}", node=node_id, name=name, attempts=len(gone)))


def _stop_what_is_not_current(turn: Turn, report: Register) -> None:
    """A node that was given up may run what others have by now; and it may not have heard that a job was cancelled."""
    current = {live.token: live for _, live in turn.memory.on_node(report.node)}
    for token in report.running:
        if token not in current:
            turn.outbox.control(report.node, Stop(job="", token=token, grace_seconds=0))
    for live in current.values():
        if live.must_end:
            stopping.repeat(turn, live)
