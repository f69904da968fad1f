"""Waiting jobs get nodes: placement in memory, attempts in the record, messages for the nodes."""

from __future__ import annotations

import time

from broker.scheduler.live import Live
from broker.scheduler.meeting_point import meeting_point
from broker.scheduler.memory import Memory
from broker.scheduler.messages import for_node
from broker.scheduler.parking import blaming
from broker.scheduler.placement import Placement
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import ProtocolError
from cyxwiz_tasks.protocol.headers import Assignment, Membership
from cyxwiz_tasks.protocol.updates import Update
from cyxwiz_tasks.states import ASSIGNED
from db import attempts, gangs
from db.attempts import Assigned, NewAttempt
from db.gangs import NewMember
from db.job_messages import StoredMessage

#: most jobs that one turn places; whoever is left over is placed by the next turn, which follows at once
PLACED_PER_TURN = 1000


def place(turn: Turn, limit: int) -> int:
    """Place what fits, up to `limit`; how many jobs found a place. Some may have moved on, or cannot be read.

    Raises PlacingFailed.
    """
    memory = turn.memory
    with blaming():
        found = memory.placer.place(limit, time.monotonic())
    with blaming(job_ids=[placement.job_id for placement in found]):
        placements = _readable(turn, found)
        rows = [new_attempt(placement) for placement in placements]
        assigned = attempts.assign(turn.tx, turn.epoch, rows, turn.settings.lease_seconds)
        members = _place_members(turn, [placement for placement in placements if placement.others], assigned)
    for placement in placements:
        entry = assigned.get(placement.job_id)
        if entry is None:
            # The record knows better: the job was cancelled or has expired.
            _drop(memory, placement)
            continue
        with blaming(job_ids=[placement.job_id]):
            if placement.others:
                live = memory.assigned_gang(placement, members[entry.token], entry.number)
            else:
                live = memory.assigned(placement, entry.token, entry.number)
            announce(turn, placement, live)
            for one in live.together:
                publish(turn, one)
    turn.counts["placed"] += len(assigned)
    return len(found)


def _readable(turn: Turn, placements: list[Placement]) -> list[Placement]:
    """Those whose messages can be read; the jobs of the others are held."""
    turn.look_up([placement.job_id for placement in placements])
    good = [placement for placement in placements if placement.job_id in turn.messages]
    if len(good) < len(placements):
        for placement in placements:
            if placement.job_id not in turn.messages:
                _drop(turn.memory, placement)
                turn.memory.cannot_be_read(placement.job_id, ProtocolError("its Celery message is damaged"))
                turn.memory.wait(placement.waiting)
    return good


def _drop(memory: Memory, placement: Placement) -> None:
    memory.placer.drop(placement)
    memory.arrays.leave_place(placement.job_id)


def _place_members(turn: Turn, placements: list[Placement], assigned: dict[str, Assigned]) -> dict[int, list[int]]:
    """Record the members of gangs. Returns their tokens, by rank, by that of the gang's attempt."""
    placed = [(assigned[one.job_id].token, one) for one in placements if one.job_id in assigned]
    tokens = gangs.place(
        turn.tx,
        [
            NewMember(*_place(member), lead=lead, rank=member.rank)
            for lead, placement in placed
            for member in placement.members
        ],
    )
    return {lead: [tokens[lead, member.rank] for member in placement.members] for lead, placement in placed}


def publish(turn: Turn, live: Live) -> None:
    """Put an attempt's message into its node's queue. The job's message must have been looked up."""
    job_id = live.job_id
    message: StoredMessage = turn.messages[job_id]
    assignment = Assignment(
        job=job_id,
        attempt=live.number,
        token=live.token,
        node=live.node_id,
        incarnation=live.incarnation,
        gpus=live.gpus,
        gpu_share_bytes=live.waiting.resources.gpu_share_bytes,
        epoch=turn.epoch,
        deadline_seconds=turn.memory.deadlines.left_seconds(job_id),
        gang=_membership(turn.memory, live) if live.gang else None,
    )
    text = for_node(message.headers, message.body, message.properties, assignment, live.publications)
    turn.outbox.to_node(live.node_id, text)


def _membership(memory: Memory, live: Live) -> Membership:
    able = {one.rank: memory.cluster.node(one.node_id) for one in live.gang if one.node_id in memory.cluster}
    lead = able[0].capability if 0 in able else None
    return Membership(
        rank=live.rank,
        token=live.gang[0].token,
        nodes=tuple(able[one.rank].name if one.rank in able else one.node_id for one in live.gang),
        address=meeting_point(lead, [node.capability for node in able.values()]) if lead is not None else None,
    )


def announce(turn: Turn, placement: Placement, live: Live) -> None:
    job_id, node = placement.job_id, placement.node_name
    if turn.wants_result(job_id):
        turn.outbox.state(job_id, ASSIGNED, {"node": node, "attempt": live.number})
    why = f"{node} has the best score, {placement.score:.2f}"
    if placement.others:
        why = f"{', '.join(member.node_name for member in placement.members)} take its {len(placement.members)} members"
    if placement.passed_over:
        names = ", ".join(other.name for other in placement.passed_over)
        why = f"{node} has the best score, {placement.score:.2f}, beside {names}, where it failed before"
    if placement.runners_up:
        why += "; next: " + ", ".join(f"{other.name} {other.score:.2f}" for other in placement.runners_up)
    if placement.last_resort:
        why += "; it is in quarantine, and no other node could run this"
    turn.outbox.update(
        job_id,
        Update(kind="state", state=ASSIGNED, node=node, attempt=live.number, message=why, at=time.time()),
    )


def new_attempt(placement: Placement) -> NewAttempt:
    return NewAttempt(
        *_place(placement),
        job_id=placement.job_id,
        scores={
            "score": round(placement.score, 4),
            "parts": {name: round(part, 4) for name, part in placement.parts._asdict().items() if part is not None},
            "next": [[other.name, round(other.score, 4)] for other in placement.runners_up],
            **({"last_resort": True} if placement.last_resort else {}),
            **({"gang": [member.node_name for member in placement.members]} if placement.others else {}),
        },
    )


def _place(placement: Placement) -> tuple[str, str, tuple[int, ...], int, int, int]:
    """The fields of `db.attempts.Place`."""
    sizes = (placement.gpu_memory_bytes, placement.cpus, placement.ram_bytes)
    return placement.node_id, placement.incarnation, placement.gpu_indexes, *sizes
