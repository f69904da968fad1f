"""The leader's answer to `why`: where a job stands, and while it waits, what would have to change for it to run."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from broker.scheduler import explain, keeping
from broker.scheduler.backlog import Waiting
from broker.scheduler.estimate import Estimate, estimate
from broker.scheduler.explain import Explanation
from broker.scheduler.history import History
from broker.scheduler.memory import Memory, tightened
from broker.scheduler.turn import Turn
from cyxwiz_tasks.cli.durations import parse_time, show_seconds
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.errors import InvalidJob, NotFound
from cyxwiz_tasks.protocol.commands import Why
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import LIVE_ATTEMPT_STATES, TERMINAL_JOB_STATES, JobState
from db import dependencies, durations, job_pages


def answer(turn: Turn, question: Why) -> dict[str, Any]:
    """`text` for people; `job` and `state` for a job; and `facts`, the counts of `broker.scheduler.explain`.

    Raises NotFound, and InvalidJob for a question without a job and without resources.
    """
    if question.job is None:
        if question.resources is None:
            raise InvalidJob("why", "names neither a job nor resources")
        applicant = Applicant(question.owner, question.project, question.priority)
        found = explain.why(turn.memory.cluster, turn.memory.backlog, question.resources, applicant=applicant)
        _estimate(turn, found, question.resources, applicant)
        return _explained(found)
    page = job_pages.get(turn.tx, question.job)
    if page is None:
        raise NotFound(f"there is no job {question.job}: `cyxwiz jobs` lists what there is")
    known = {"job": page["id"], "state": page["state"]}
    before = _attempts_before(page)
    if page["id"] in turn.memory.dependencies:
        return known | {"text": _waits_for(dependencies.of_job(turn.tx, page["id"]))}
    if (at_most := turn.memory.arrays.limit_of(page["id"])) is not None:
        are = "1 of them is" if at_most == 1 else f"{at_most} of them are"
        told = f"The job waits for another job of its array to end: {are} at work, which is its at_most."
        return known | {"text": " ".join([told, *before])}
    delayed = turn.memory.delayed.get(page["id"])
    if delayed is not None and (story := turn.memory.parked.story(delayed)) is not None:
        return known | {"text": " ".join([story, *before])}
    if page["state"] == JobState.PENDING and delayed is None:
        resources = tightened(Resources.parse(page["resources"]), page["learned"])
        found = explain.why(turn.memory.cluster, turn.memory.backlog, resources, page["id"])
        if (waiting := turn.memory.backlog.find(page["id"])) is not None:
            found.sentences += keeping.sentences(turn.memory, waiting)
            applicant = waiting.applicant
            _estimate(turn, found, resources, applicant, waiting)
            if waiting.job_id in turn.memory.start_by and (start_by := parse_time(page["expires_at"])) is not None:
                found.sentences += found.estimate.too_late(start_by) if found.estimate is not None else []
        found.sentences += before
        return known | _explained(found)
    return known | {"text": " ".join([_sentence(page), *before, *_checkpoint(turn.memory, page)])}


def _estimate(
    turn: Turn, found: Explanation, resources: Resources, applicant: Applicant, waiting: Waiting | None = None
) -> None:
    """Add when it will start."""
    if not found.fitting:
        found.estimate = Estimate(start=None, basis="no node here can run it as it is")
        return
    if resources.nodes > 1:
        found.estimate = Estimate(start=None, basis="for jobs on several nodes nobody counts it")
        return
    if waiting is None and found.quota == "reached":
        found.estimate = Estimate(start=None, basis="it would wait for the quota of its project")
        found.sentences.append(str(found.estimate))
        return
    history = History(durations.recent(turn.tx))
    names = partial(durations.names, turn.tx)
    found.estimate = estimate(turn.memory, history, names, resources, applicant, waiting)
    found.sentences.append(str(found.estimate))


_ENDS = {"ok": "to complete", "fail": "to fail or be cancelled", "any": "to end"}
#: of those that a job waits for, so many are named
_NAMED = 5


def _waits_for(rows: list[dict[str, Any]]) -> str:
    unmet = [row for row in rows if row["met_at"] is None]
    named = ", ".join(f"{_what(row)} {_ENDS[row['kind']]}" for row in unmet[:_NAMED])
    more = f", and {len(unmet) - _NAMED} more" if len(unmet) > _NAMED else ""
    next_one = next((row["id"] for row in unmet if row["state"] != "array"), None)
    hint = f" `cyxwiz why {next_one}` says where that one is." if next_one is not None else ""
    return f"The job waits for {named}{more}.{hint}"


def _what(row: dict[str, Any]) -> str:
    if row["state"] != "array":
        return f"job {row['id']} ({row['state']})"
    missing = f" (which lacks {row['missing']} of its jobs: not sent yet, or refused)" if row["missing"] else ""
    return f"array {row['id']}{missing}"


def _explained(found: Explanation) -> dict[str, Any]:
    return {"text": str(found), "facts": found.model_dump(mode="json")}


def _sentence(page: dict[str, Any]) -> str:
    state, node = page["state"], page["node"]
    if state in LIVE_ATTEMPT_STATES:
        scores = page["attempt_list"][-1]["scores"] or {}
        verb = "runs on" if state == JobState.RUNNING else "was given to"
        text = f"The job {verb} node {node}, attempt {page['attempts']}."
        if gang := scores.get("gang"):
            text = f"The job {verb} {len(gang)} nodes, {', '.join(gang)}, attempt {page['attempts']}."
        elif scores:
            parts = ", ".join(f"{name} {value:.2f}" for name, value in scores["parts"].items())
            text += f" Its score was the best, {scores['score']:.2f} ({parts})"
            others = ", ".join(f"{name} {value:.2f}" for name, value in scores["next"])
            text += f"; next: {others}." if others else "."
        if scores.get("last_resort"):
            text += " The node was in quarantine after repeated faults, and no other node could run the job."
        return text + (" Its cancellation was asked for." if page["cancel_requested_at"] else "")
    if state == JobState.PENDING:
        what = "to be tried again" if page["cause"] else "for its time"
        return f"The job waits {what}: it starts at {page['not_before'] or 'any moment'} at the earliest."
    if state in TERMINAL_JOB_STATES:
        where = f" on node {node}" if node else ""
        why = f": {page['message']}" if page["message"] else ""
        more = ""
        if state == JobState.FAILED:
            more = f" `cyxwiz job {page['id']}` shows all of it, `cyxwiz logs {page['id']}` what it wrote."
        return f"The job is {state}{where}{why}{'' if why.endswith('.') else '.'}{more}"
    told = (page["message"] or page["cause"]).rstrip(".").removeprefix("held, ")
    told = told.replace("release ID", f"release {page['id']}")
    return f"The job is held until somebody releases it: {told}."


def _checkpoint(memory: Memory, page: dict[str, Any]) -> list[str]:
    """For a job that runs: what it would lose if it gave its place back."""
    live = memory.live.get(page["id"])
    if live is None or not live.running:
        return []
    if live.checkpointed_at is None:
        return ["It has told of no checkpoint yet."]
    return [f"Its last checkpoint was {show_seconds(time.monotonic() - live.checkpointed_at)} ago."]


def _attempts_before(page: dict[str, Any]) -> list[str]:
    """For a job that waits again: how its last attempt ended, and what it asks for since."""
    if page["state"] != JobState.PENDING or not page["cause"]:
        return []
    said = (page["message"] or "").partition("\n")[0].rstrip(". ")
    sentences = [f"Attempt {page['attempts']} ended by {page['cause']}{': ' if said else ''}{said}."]
    if page["learned"]:
        needs = ", ".join(f'{name}="{value}"' for name, value in page["learned"].items())
        sentences.append(f"Since it ran out of memory it needs more than it had: {needs}.")
    return sentences
