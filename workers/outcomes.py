"""How an attempt ended, in words: one function for each outcome. Each message says what to do next."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cyxwiz_tasks.errors import JobFailed, ResultRefused
from cyxwiz_tasks.runtime.pipe import relayed_value
from cyxwiz_tasks.states import Cause, Memory
from workers.attempt import Attempt
from workers.failure import stand_in
from workers.limits import Reason
from workers.retry_message import NextTry, retry_message


@dataclass(frozen=True)
class Outcome:
    """What is reported to the scheduler, and what Celery gets of it."""

    kind: str
    cause: Cause | None = None
    message: str | None = None
    #: what Celery stores as the failure
    error: Exception | None = None
    value: Any = None
    #: the value as JSON text
    encoded: str | None = None
    next_try: NextTry | None = None
    exception: str | None = None
    #: the classes that it is an instance of, itself first
    exception_bases: tuple[str, ...] = ()
    traceback: str | None = None
    #: of `out_of_memory`: which one
    memory: Memory | None = None


def outcome_of(attempt: Attempt) -> Outcome:
    """What became of the attempt; what we did to it comes before what it said."""
    frame = attempt.last_frame
    if attempt.stopped is not None:
        return cancelled(attempt) if attempt.stopped.outcome == "cancelled" else preempted(attempt)
    if attempt.ended_for is not None and not (attempt.ended_for == "hung" and frame is not None):
        return _BY_LIMIT[attempt.ended_for](attempt)
    if frame is None:
        return ended_without_word(attempt)
    return _BY_LAST_WORD[frame["kind"]](attempt)


def completed(attempt: Attempt) -> Outcome:
    text = _frame(attempt)["value"]
    return Outcome("completed", value=relayed_value(text), encoded=text)


def raised(attempt: Attempt) -> Outcome:
    frame = _frame(attempt)
    cause, said = Cause(frame["cause"]), f"{frame['type']}: {frame['text']}"[:2000]
    if frame["kill"] and attempt.ran_out_of_memory:
        return out_of_memory(attempt)
    match cause:
        case Cause.OUT_OF_MEMORY:
            return out_of_memory(attempt)
        case Cause.HARDWARE:
            return _raised(attempt, cause, f"hardware of node {attempt.node.name} failed: {said}")
        case Cause.NETWORK:
            return _raised(attempt, cause, f"a connection of the job broke on node {attempt.node.name}: {said}")
    return _raised(attempt, _hardware_or(attempt, Cause.ERROR), said)


def out_of_memory(attempt: Attempt) -> Outcome:
    """By its own word, or killed by the kernel, which knows the host's memory alone: the job, or a process of it."""
    frame = attempt.last_frame
    memory: Memory = "ram"
    if frame is not None and frame["memory"] == "gpu_memory" and attempt.device.startswith("cuda"):
        memory = "gpu_memory"
    advice = f"ask for more ({memory} in its resources) or use a smaller batch"
    if frame is None:
        said = f"the kernel killed the job for its memory on node {attempt.node.name}: {advice}"
        return replace(_failed(attempt, Cause.OUT_OF_MEMORY, said), memory=memory)
    who = "the job ran" if frame["memory"] is not None else f"a process of the job on node {attempt.node.name} ran"
    where = "GPU memory" if memory == "gpu_memory" else "memory"
    said = f"{who} out of {where} ({frame['text'][:1000]}): {advice}"
    return replace(_raised(attempt, Cause.OUT_OF_MEMORY, said), memory=memory)


def ended_without_word(attempt: Attempt) -> Outcome:
    code = attempt.exit_code or 0
    if code == -signal.SIGKILL and attempt.ran_out_of_memory:
        return out_of_memory(attempt)
    return crashed(attempt, -code) if code < 0 else exited(attempt)


def crashed(attempt: Attempt, signal_number: int) -> Outcome:
    try:
        name = signal.Signals(signal_number).name
    except ValueError:
        name = f"signal {signal_number}"
    hint = {
        "SIGKILL": "somebody or something on that machine killed it",
        "SIGSEGV": "native code touched memory that is not its own: see the last lines, try other library versions",
        "SIGABRT": "native code gave up: see the last lines",
        "SIGBUS": "a file that it had mapped shrank, or shared memory ran out",
    }.get(name, "see the last lines")
    cause = _hardware_or(attempt, Cause.CRASHED)
    return _failed(attempt, cause, f"the job's process was ended by {name} on node {attempt.node.name}: {hint}")


def exited(attempt: Attempt) -> Outcome:
    frame = attempt.last_frame
    code = attempt.exit_code if frame is None else frame["code"]
    return _failed(
        attempt,
        Cause.ERROR,
        f"the job's process exited with status {code} on node {attempt.node.name} before its function returned: "
        f"return a value or raise an exception instead of exiting",
    )


def time_limit(attempt: Attempt) -> Outcome:
    return _failed(
        attempt,
        Cause.TIME_LIMIT,
        f"the job ran longer than its time limit of {attempt.time_limit_seconds:g} s: give it more (`time_limit=`), or "
        f"return when `ctx.should_stop` turns true",
    )


def deadline(attempt: Attempt) -> Outcome:
    return _failed(
        attempt,
        Cause.DEADLINE,
        f"the job had not ended by its deadline, after {attempt.seconds:.0f} s on node {attempt.node.name}: submit it "
        f"earlier, or with a later `deadline=`",
    )


def hung(attempt: Attempt) -> Outcome:
    settings = attempt.node.settings
    return _failed(
        attempt,
        _hardware_or(attempt, Cause.HUNG),
        f"the job went silent on node {attempt.node.name}, for longer than {settings.hung_floor_seconds:g} s and "
        f"{settings.hung_factor:g} times its usual pause between two reports. Where each thread was is in its log: if "
        f"that is a step that takes so long, report from within it",
    )


def cut_off(attempt: Attempt) -> Outcome:
    why = (
        "an exclusive job, whose lease would have ended" if attempt.header.exclusive else "for longer than it may wait"
    )
    return Outcome("preempted", Cause.PREEMPTED, f"node {attempt.node.name} was cut off from the broker: {why}")


def not_json(attempt: Attempt) -> Outcome:
    frame = _frame(attempt)
    return _result_refused(
        attempt,
        f"the job returned a value of type {frame['type']}, which JSON cannot carry ({frame['reason']}): return "
        f"numbers, texts, lists and dicts, and write everything else into files in ctx.artifacts",
    )


def too_large(attempt: Attempt) -> Outcome:
    limit = attempt.node.settings.result_limit_bytes
    return _result_refused(
        attempt,
        f"the job returned {_frame(attempt)['bytes']} bytes of JSON, more than the {limit} that a result may have "
        f"(CYXWIZ_RESULT_LIMIT_BYTES of its node): write a file into ctx.artifacts and return its name",
    )


def cancelled(attempt: Attempt) -> Outcome:
    return Outcome("cancelled", Cause.CANCELLED, f"cancelled after {attempt.seconds:.1f} s on node {attempt.node.name}")


def preempted(attempt: Attempt) -> Outcome:
    asked = attempt.stop_request.asked
    why = f": {asked.reason}" if asked is not None and asked.reason else ""
    return Outcome("preempted", Cause.PREEMPTED, f"gave its place on node {attempt.node.name} back{why}")


def no_checkpoint(attempt: Attempt, error: Exception) -> Outcome:
    return _failed(
        attempt,
        Cause.NETWORK,
        f"the job's checkpoint could not be fetched to node {attempt.node.name} ({error}): see that the artifact store "
        f"answers there",
    )


def not_met(attempt: Attempt, error: Exception) -> Outcome:
    return _failed(attempt, Cause.NETWORK, f"the members of the gang did not meet: {error}")


def retry(attempt: Attempt) -> Outcome:
    frame = _frame(attempt)
    why = "" if frame["cause"] is None else f" after {frame['cause']['type']}: {frame['cause']['text']}"
    try:
        following = retry_message(attempt.node.app, frame["message"], attempt.node.link.server_ahead_seconds)
    except Exception as error:  # whatever Celery makes of what the job gave
        advice = "give a `countdown` in seconds, or an `eta`"
        return _failed(attempt, Cause.ERROR, f"self.retry() makes no message for the next try ({error}): {advice}")
    return Outcome("retry", message=f"tries again{why}"[:2000], next_try=following)


def _raised(attempt: Attempt, cause: Cause, message: str) -> Outcome:
    frame = _frame(attempt)
    return Outcome(
        "failed",
        cause,
        message,
        error=stand_in(frame),
        exception=f"{frame['module']}.{frame['type']}",
        exception_bases=tuple(frame["bases"]),
        traceback=frame["traceback"][-16_000:],
    )


def _failed(attempt: Attempt, cause: Cause, message: str) -> Outcome:
    if lines := attempt.log.last_lines():
        message = f"{message}. Its last lines:\n{lines}"
    return Outcome("failed", cause, message, error=JobFailed(message, cause=str(cause)), exception="JobFailed")


def _result_refused(attempt: Attempt, message: str) -> Outcome:
    """The whole job again would end with the same value: the scheduler does not try that."""
    refused = _failed(attempt, Cause.ERROR, message)
    bases = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in (ResultRefused, JobFailed))
    error = ResultRefused(refused.message, cause=str(Cause.ERROR))
    return replace(refused, error=error, exception=ResultRefused.__name__, exception_bases=bases)


def _hardware_or(attempt: Attempt, cause: Cause) -> Cause:
    """Whoever uses a GPU that fails sees any kind of end; the driver knows better."""
    return Cause.HARDWARE if attempt.gpu_fault is not None else cause


def _frame(attempt: Attempt) -> dict[str, Any]:
    assert attempt.last_frame is not None
    return attempt.last_frame


_BY_LAST_WORD: dict[str, Callable[[Attempt], Outcome]] = {
    "returned": completed,
    "raised": raised,
    "retry": retry,
    "exited": exited,
    "not_json": not_json,
    "too_large": too_large,
    "cut_off": cut_off,
}
_BY_LIMIT: dict[Reason, Callable[[Attempt], Outcome]] = {
    "time_limit": time_limit,
    "deadline": deadline,
    "hung": hung,
    "cut_off": cut_off,
}
