"""From the record to the rules of `retry_policy`, for attempts that ended without a result."""

from __future__ import annotations

import logging
import random
import time
from typing import NamedTuple

from pydantic import ValidationError

from broker.scheduler import unreadable
from broker.scheduler.backlog import Waiting
from broker.scheduler.live import Live
from broker.scheduler.log_lines import line
from broker.scheduler.node import Node
from broker.scheduler.retry_policy import OWN, Decision, End, Wishes, decide
from broker.scheduler.turn import Turn
from cyxwiz_tasks.protocol.headers import JobHeader
from cyxwiz_tasks.protocol.names import HEADER
from cyxwiz_tasks.protocol.reports import Ended
from cyxwiz_tasks.states import Cause
from db import attempts
from db.attempts import Past
from db.job_messages import StoredMessage

log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    decision: Decision
    #: the job's ends before this one, since it was accepted or released
    before: list[End]


def judge(turn: Turn, ends: dict[str, End]) -> dict[str, Verdict]:
    """The fate of each of these jobs, by id. All of them have a live attempt in memory."""
    turn.look_up([job_id for job_id, end in ends.items() if end.cause in OWN])
    history = attempts.history(turn.tx, [job_id for job_id, end in ends.items() if end.number > 1])
    # What is lost at once was spread over the nodes when it was placed: one draw for all of it is enough.
    chance = random.random()  # noqa: S311 - spreads the retries
    limit = turn.settings.poison_limit
    verdicts = {}
    for job_id, end in ends.items():
        wishes = _wishes(turn.messages.get(job_id), turn.memory.live[job_id].waiting)
        before = [_past(one) for one in history.get(job_id, ())]
        verdicts[job_id] = Verdict(decide(wishes, end, before, chance, limit), before)
    return verdicts


def lost(turn: Turn, job_id: str, cause: Cause, message: str) -> End:
    """An attempt that the scheduler takes back."""
    live = turn.memory.live[job_id]
    node = _node(turn, live.node_id)
    return End(
        live.number,
        cause,
        node.name if node is not None else "",
        live.node_id,
        message,
        started=_has_begun(live),
        seconds=time.monotonic() - live.assigned_at,
    )


def reported(turn: Turn, report: Ended, live: Live) -> End:
    """An attempt whose node says how it ended."""
    node = _node(turn, report.node)
    ran_out_of, had_bytes = _memory(report, live, node) if report.cause == Cause.OUT_OF_MEMORY else (None, None)
    return End(
        report.attempt,
        report.cause or (Cause.PREEMPTED if report.outcome == "preempted" else Cause.ERROR),
        node.name if node is not None else "",
        report.node,
        report.message or "",
        started=_has_begun(live),
        # An agent that speaks for the one before it does not know.
        seconds=report.seconds or time.monotonic() - live.assigned_at,
        exceptions=report.exception_bases or ((report.exception,) if report.exception else ()),
        ran_out_of=ran_out_of,
        had_bytes=had_bytes,
    )


def _has_begun(live: Live) -> bool:
    """Of a gang: whether any member has."""
    return any(one.running for one in live.together)


def _memory(report: Ended, live: Live, node: Node | None) -> tuple[str, int | None]:
    """Which memory ran out, and how much of it the attempt had; a node that does not say is taken at its totals."""
    memory = report.memory or ("gpu_memory" if live.gpus else "ram")
    if report.had_memory_bytes or node is None:
        return memory, report.had_memory_bytes
    sizes = node.gpu_memory_at(live.gpus) if memory == "gpu_memory" else [node.capability.ram_bytes]
    return memory, min(sizes, default=None)


def _node(turn: Turn, node_id: str) -> Node | None:
    cluster = turn.memory.cluster
    return cluster.node(node_id) if node_id in cluster else None


def _past(past: Past) -> End:
    return End(past.number, past.cause, past.node, past.node_id, past.message, past.started, past.seconds)


def _wishes(message: StoredMessage | None, waiting: Waiting) -> Wishes:
    """What the job's submitter wished; of a header that nobody can read, nothing: it must not keep the node's other
    jobs from being tried again.
    """
    try:
        header = JobHeader.model_validate(message.headers[HEADER] if message is not None else {})
    except (ValidationError, KeyError) as error:
        log.error(line("header_unreadable", job=waiting.job_id, reason=unreadable.why(error)))
        return Wishes(resources=waiting.resources)
    return Wishes(header.max_retries, header.retry_on, header.no_retry_on, waiting.resources)
