"""What becomes of a job whose attempt ended without a result: tried again, failed, or held for a person to look at.

Pure rules over the job's wishes, this end and the ends before it. Each cause has a budget of its own, so that what
nodes and networks do to a job never uses up the tries that its submitter gave it:

| cause | tried again | pause |
|---|---|---|
| error, out_of_memory, crashed | `max_retries` times together | long |
| hung | twice | long |
| network, hardware | 10 times each | long |
| node_lost, preempted | always | none, then short |
| time_limit, deadline | never | |
| error: what it returned is no JSON, or too large | never | |

A job that is lost within seconds again and again is with a node that fails all it is given: its short pause is doubled
each time, to 30 s, until the node's faults have put it away.

A long pause is drawn from 0 to 1 s, doubled with each end of that cause, to 5 minutes: full jitter, so that what failed
together does not come back together. A short one is drawn from 0 to 0.5 s.

Two kinds of jobs are poison, and are held rather than tried on: one that crashed three times, and one that takes down
its nodes (lost soon after its start on three of them, or six times on fewer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, TypeAlias

from cyxwiz_tasks.errors import ResultRefused
from cyxwiz_tasks.quantities import show_size
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Cause

#: causes that are the job's own fault: `max_retries` counts them together
OWN = frozenset({Cause.ERROR, Cause.OUT_OF_MEMORY, Cause.CRASHED})
#: causes that are nobody's fault that could be cured by giving up: tried again for ever, and at once
FREE = frozenset({Cause.NODE_LOST, Cause.PREEMPTED})
FINAL = frozenset({Cause.TIME_LIMIT, Cause.DEADLINE})
#: what a job returned cannot be kept: after hours of work it would return the same again
RESULT_REFUSED = f"{ResultRefused.__module__}.{ResultRefused.__qualname__}"
#: further tries after ends of the other causes
BUDGETS = {Cause.HUNG: 2, Cause.NETWORK: 10, Cause.HARDWARE: 10}

BACKOFF_BASE_SECONDS, BACKOFF_CAP_SECONDS = 1.0, 300.0
SHORT_PAUSE_SECONDS = 0.5
#: lost so soon, a job's next pause is longer
SPIN_SECONDS, SPIN_CAP_SECONDS = 5.0, 30.0
#: crashes, and different nodes lost, that make a job poison; on fewer nodes twice as many losses: see the settings
POISON_LIMIT = 3
#: a node that is lost later than so long after the job's start was hardly taken down by it
QUICK_LOSS_SECONDS = 600.0
#: After it ran out of memory a job asks for so much more than it had. Cards that are sold as one size differ by up to
#: 7 %, and a requirement is met at 93 % of it: less would be the same card again.
_MORE_MEMORY = 1.15
_GIB = 2**30
_STORY_CHARACTERS = 160

_WHAT_FAILED = {
    Cause.NETWORK: "see what its connections go through",
    Cause.HARDWARE: "see `cyxwiz nodes` and the hardware of the nodes where it ran",
    Cause.HUNG: "see the stacks at the end of its log, or let it report more often",
}


@dataclass(frozen=True)
class Wishes:
    """What a job's header says of its tries."""

    max_retries: int = 0
    retry_on: tuple[str, ...] = ()
    no_retry_on: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class End:
    """One attempt that ended without a result."""

    number: int
    cause: Cause
    #: name and id of its node
    node: str = ""
    node_id: str = ""
    message: str = ""
    #: whether its process had started, and how long it ran then
    started: bool = True
    seconds: float = 0.0
    #: the exception and the classes that it is an instance of, as "module.Class"
    exceptions: tuple[str, ...] = ()
    #: out of memory: which memory ("gpu_memory" or "ram"), and how many bytes of it there were
    ran_out_of: str | None = None
    had_bytes: int | None = None


@dataclass(frozen=True)
class Retry:
    #: not to be placed sooner
    after_seconds: float = 0.0
    #: fields that replace those of the job's resources
    learned: dict[str, Any] | None = None


@dataclass(frozen=True)
class Fail:
    #: what the end's own message does not say: that it was not the first
    remark: str = ""


@dataclass(frozen=True)
class Hold:
    story: str


Decision: TypeAlias = Retry | Fail | Hold


def decide(
    wishes: Wishes, end: End, before: Sequence[End], chance: float, poison_limit: int = POISON_LIMIT
) -> Decision:
    """The fate of a job. `before`: its earlier ends since it was accepted or released; `chance`: drawn from 0 to 1."""
    ends = [*before, end]
    if (story := _poison(ends, poison_limit)) is not None:
        return Hold(story)
    alike = [past for past in ends if past.cause == end.cause]
    if end.cause in FREE:
        return Retry(_free_pause(alike, chance))
    if end.cause in OWN:
        return _judge_own(wishes, end, ends, chance)
    budget = BUDGETS.get(end.cause, 0)
    if len(alike) > budget:
        advice = _WHAT_FAILED.get(end.cause)
        return Fail(f"tried {len(alike)} times with this end: {advice}" if budget else "")
    return Retry(_backoff(len(alike), chance))


def _judge_own(wishes: Wishes, end: End, ends: list[End], chance: float) -> Decision:
    tries = sum(past.cause in OWN for past in ends)
    again = f"tried {tries} times" if tries > 1 else ""
    if tries > wishes.max_retries or RESULT_REFUSED in end.exceptions:
        return Fail(again)
    if end.cause == Cause.ERROR and not _is_wanted(wishes, end.exceptions):
        return Fail(again)
    pause_seconds = _backoff(sum(past.cause == end.cause for past in ends), chance)
    if end.cause != Cause.OUT_OF_MEMORY or end.ran_out_of is None or end.had_bytes is None:
        return Retry(pause_seconds)
    return _with_more_memory(wishes.resources, end.ran_out_of, end.had_bytes, pause_seconds)


def _is_wanted(wishes: Wishes, exceptions: tuple[str, ...]) -> bool:
    """Whether an exception is one to try again. A name with its module, or without, stands for its subclasses too."""
    if _named(wishes.no_retry_on, exceptions):
        return False
    return not wishes.retry_on or _named(wishes.retry_on, exceptions)


def _named(names: tuple[str, ...], exceptions: tuple[str, ...]) -> bool:
    return any(exception == name or exception.endswith(f".{name}") for exception in exceptions for name in names)


def _with_more_memory(resources: Resources, field: str, had_bytes: int, pause_seconds: float) -> Decision:
    limits = resources.gpu_memory_bytes if field == "gpu_memory" else resources.ram_bytes
    wanted = _rounded_up(max(had_bytes * _MORE_MEMORY, limits.min_bytes))
    if limits.max_bytes is not None and wanted > limits.max_bytes:
        return Fail(f'it had {show_size(had_bytes)} and its {field}="{getattr(resources, field)}" allows no more')
    upper = str(getattr(resources, field)).partition("..")[2].strip()
    return Retry(pause_seconds, {field: f"{_written(wanted)}..{upper}"})


def _rounded_up(size_bytes: float) -> int:
    """To a tenth of a gigabyte, or below one to a megabyte: as people write sizes."""
    step = _GIB / 10 if size_bytes >= _GIB else 2**20
    return ceil(ceil(size_bytes / step) * step)


def _written(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f}GB" if size_bytes >= _GIB else f"{size_bytes // 2**20}MB"


def _free_pause(alike: list[End], chance: float) -> float:
    if len(alike) == 1:
        return 0.0
    spins = sum(_is_spin(end) for end in alike) if _is_spin(alike[-1]) else 0
    return chance * min(SPIN_CAP_SECONDS, SHORT_PAUSE_SECONDS * 2.0 ** min(max(0, spins - 2), 30))


def _is_spin(end: End) -> bool:
    return end.cause == Cause.NODE_LOST and end.seconds < SPIN_SECONDS


def _backoff(count: int, chance: float) -> float:
    # The exponent is bounded: 2.0 ** 2000 is an error.
    return chance * min(BACKOFF_CAP_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** min(count - 1, 30))


def _poison(ends: list[End], limit: int) -> str | None:
    """The story of a job that is not to be tried on, if its last end makes it one."""
    last = ends[-1]
    crashes = [end for end in ends if end.cause == Cause.CRASHED]
    if last.cause == Cause.CRASHED and len(crashes) >= limit:
        return _story(f"it crashed {_times(len(crashes))}", crashes)
    losses = [end for end in ends if _is_quick_loss(end)]
    nodes = {end.node_id for end in losses}
    if _is_quick_loss(last) and (len(nodes) >= limit or len(losses) >= 2 * limit):
        where = f"{len(nodes)} different nodes" if len(nodes) > 1 else "its node"
        return _story(f"{where} went down soon after its start, {_times(len(losses))} in all", losses)
    return None


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _is_quick_loss(end: End) -> bool:
    return end.cause == Cause.NODE_LOST and end.started and end.seconds < QUICK_LOSS_SECONDS


def _story(what: str, ends: list[End]) -> str:
    told = [f"attempt {end.number} on {end.node or end.node_id}: {end.cause}{_first_line(end)}" for end in ends]
    return f"held, {what}: {'; '.join(told)}. Release it with `cyxwiz release ID` once the reason is gone, or cancel it"


def _first_line(end: End) -> str:
    line = (end.message.splitlines() or [""])[0][:_STORY_CHARACTERS].rstrip(" .:")
    return f" ({line})" if line else ""
