"""Jobs and nodes that this scheduler cannot read out of its record are set aside, each alone, and the others go on.

A job is held, with a story on its page; one that runs goes on, and is held if it would have to be placed again. A node
is lost until it registers anew, which a node that beats is asked to do within seconds; what runs there goes on.
"""

from __future__ import annotations

from collections import defaultdict

from broker.scheduler.ending import set_aside
from broker.scheduler.turn import Turn
from cyxwiz_tasks.states import Cause
from db import jobs, nodes
from db.models import NodeState

#: jobs that one turn holds: after a change of releases it may be all of them
_HELD_PER_TURN = 1000


def handle(turn: Turn) -> None:
    """Set aside what was found since this was called last."""
    memory = turn.memory
    found, memory.to_hold = memory.to_hold[:_HELD_PER_TURN], memory.to_hold[_HELD_PER_TURN:]
    alike: dict[str, list[str]] = defaultdict(list)
    for job_id in found:
        if (story := memory.unreadable.get(job_id)) is not None:
            alike[story].append(job_id)
    for story, job_ids in alike.items():
        held = jobs.hold(turn.tx, turn.epoch, job_ids, Cause.ERROR, story)
        turn.look_up(held)
        for job_id in held:
            set_aside(turn, job_id, story)
    for node_id, why in memory.unreadable_nodes.items():
        if node_id not in memory.cluster:  # it may have registered in this very turn
            message = f"the scheduler cannot read what it can do: {why}"
            nodes.mark(turn.tx, turn.epoch, [node_id], NodeState.LOST, Cause.NODE_LOST, message)
    memory.unreadable_nodes = {}
