"""Attempts are asked to leave for a job that is more urgent, and the next leader knows of it by the record."""

from __future__ import annotations

import logging
import math
from collections import defaultdict

import numpy as np
from sqlalchemy import Connection

from broker.scheduler import stopping
from broker.scheduler.admission import Admission
from broker.scheduler.backlog import Waiting
from broker.scheduler.demand import demand_of
from broker.scheduler.log_lines import line
from broker.scheduler.memory import Memory
from broker.scheduler.node import Node
from broker.scheduler.places import Wanted
from broker.scheduler.preemption import Clearing, Place
from broker.scheduler.turn import Turn
from cyxwiz_tasks.settings import Settings
from db import preemptions
from db.preemptions import Preemption

log = logging.getLogger(__name__)


def clear(turn: Turn, waiting: Waiting, clearing: Clearing, reason: str | None = None) -> None:
    """Ask the victims to leave, and keep what they give back for the job that waits."""
    live = turn.memory.live
    reason = reason or f"its place is needed by job {waiting.job_id}, whose priority is {waiting.priority}"
    victims = [live[name].together[0] for name in clearing.victims]
    for victim in victims:
        stopping.preempt(turn, victim, reason)
    node_ids = [place.node_id for place in clearing.places]
    noted = [Preemption(victim.job_id, victim.token, waiting.job_id, node_ids) for victim in victims]
    if noted:
        preemptions.note(turn.tx, turn.epoch, noted)
    turn.memory.claims.clear(waiting, clearing)
    log.info(line("preempting", job=waiting.job_id, nodes=",".join(node_ids), victims=",".join(clearing.victims)))


def restore(tx: Connection, memory: Memory, settings: Settings) -> None:
    """Know again who was asked to leave for whom, and where: nobody else is asked for the same job.

    Whoever was asked is asked once more, since the last leader may have died before it said it. Where all victims have
    gone and only others are awaited, nobody knows of it any more.
    """
    awaited, wanted_on = defaultdict[str, set[str]](set), dict[str, list[str]]()
    for asked in preemptions.under_way(tx):
        live = memory.of_token(asked.job_id, asked.token)
        if live is None:
            continue
        if not live.must_end:
            reason = f"its place is needed by job {asked.claimant}"
            for one in live.together:
                one.stop, one.stop_said_at = stopping.preemption(one, reason, settings), -math.inf
        awaited[asked.claimant].update(one.holder for one in live.together)
        wanted_on[asked.claimant] = asked.node_ids  # the last word counts: another place may have been looked for
    for claimant, node_ids in wanted_on.items():
        waiting = memory.backlog.find(claimant)
        nodes = [memory.cluster.node(id) for id in node_ids if id in memory.cluster]
        if waiting is not None and len(nodes) == waiting.resources.nodes:
            first, *others = [Place(node.node_id, _wanted(memory, waiting, node)) for node in nodes]
            there = {name for node in nodes for name in node.holdings if name in memory.live}
            ending = awaited[claimant] | {name for name in there if memory.live[name].must_end}
            memory.claims.clear(waiting, Clearing(*first, (), frozenset(ending), tuple(others)))


def _wanted(memory: Memory, waiting: Waiting, node: Node) -> Wanted:
    rows = np.array([node.row], np.int32)
    admitted = Admission(waiting.resources).gpus(memory.cluster.columns, rows)
    return Wanted(demand_of(waiting.resources), tuple(admitted[0].nonzero()[0].tolist()))
