"""New jobs that find a place as they arrive: one statement, instead of a transaction of four round trips.

That is how a job on a cluster with room starts in time; it decides nothing that an ordinary turn would decide in
another way. What is not plain (somebody who waits could take the place, the job is known already, it comes with a time
or a key, or something else has arrived with it) leaves everything as it was, and an ordinary turn does it all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from broker.scheduler.inbox import INBOX_LISTS, Batch
from broker.scheduler.memory import Memory, waiting_arrival
from broker.scheduler.messages import Arrival
from broker.scheduler.placement import Placement
from broker.scheduler.placing import announce, new_attempt, publish
from broker.scheduler.turn import Turn
from cyxwiz_tasks import failpoints
from db.first_attempts import accept_placed
from db.job_messages import StoredMessage
from db.new_jobs import NewJob

#: more at once are better off with an ordinary turn: it places those that fit and lets the rest wait
_LIMIT = 50
#: behind everybody who waits
_LAST = 2**62


def place_at_once(turn: Turn, batches: Sequence[Batch]) -> bool:
    """Record and place what has arrived. False: nothing was done, it takes an ordinary turn.

    The statement fences itself: `turn.tx` may be in autocommit mode.
    """
    plain = _plain(batches)
    placements = _book(turn.memory, [arrival for arrival, _ in plain]) if plain else {}
    if not placements:
        return False
    failpoints.hit("scheduler.before_commit")
    attempts = [new_attempt(placements[arrival.id]) for arrival, _ in plain]
    recorded = accept_placed(turn.tx, turn.epoch, [job for _, job in plain], attempts, turn.settings.lease_seconds)
    if not recorded:
        for placement in placements.values():
            turn.memory.placer.drop(placement)
        return False
    for arrival, _ in plain:
        token, seq = recorded[arrival.id]
        placement = placements[arrival.id]
        placement = placement._replace(waiting=placement.waiting._replace(sequence=seq))
        turn.messages[arrival.id] = StoredMessage(arrival.headers, arrival.body, arrival.properties)
        live = turn.memory.assigned(placement, token, 1)
        announce(turn, placement, live)
        publish(turn, live)
        turn.outbox.recorded(arrival.header.reply_to, arrival.id)
    turn.counts["accepted"] = turn.counts["placed"] = len(plain)
    return True


def _plain(batches: Sequence[Batch]) -> list[tuple[Arrival, NewJob]]:
    """The jobs that have arrived; none if they are too many, or not all of them plain."""
    if sum(len(batch.messages) for batch in batches) > _LIMIT or any(b.source not in INBOX_LISTS for b in batches):
        return []
    found = [reading for batch in batches for reading in batch.readings]
    if any(isinstance(reading, Exception) or not _is_plain(*reading) for reading in found):
        return []
    return found if len({job.id for _, job in found}) == len(found) else []


def _is_plain(arrival: Arrival, job: NewJob) -> bool:
    times = (job.not_before, job.expires_at, job.start_by_seconds, job.deadline_seconds)
    gated = arrival.header.after or arrival.header.array or arrival.header.resources.nodes > 1
    return not (arrival.retries or gated or job.idempotency_key) and all(time is None for time in times)


def _book(memory: Memory, arrivals: list[Arrival]) -> dict[str, Placement]:
    """Places for all of them, by job; none if not all find one, or if somebody who waits comes first."""
    new = {arrival.id: waiting_arrival(arrival, _LAST + number) for number, arrival in enumerate(arrivals)}
    limits = memory.shares.limits
    if any(limits.of(waiting.owner).per_minute is not None for waiting in new.values()):
        return {}  # an ordinary turn counts them
    if any(id in memory.live or memory.backlog.waits_for_the_same(waiting) for id, waiting in new.items()):
        return {}
    if any(memory.parked.until(waiting) is not None for waiting in new.values()):
        return {}
    for waiting in new.values():
        memory.backlog.add(waiting)
    found = {placement.job_id: placement for placement in memory.placer.place(len(new) + 1, time.monotonic())}
    if found.keys() == new.keys():
        return found
    for job_id, placement in found.items():
        if job_id in new:
            memory.placer.drop(placement)
        else:
            memory.placer.undo(placement)
    for job_id in new.keys() - found.keys():
        memory.backlog.take_back(new[job_id])
    return {}
