"""Attempts, tokens, epochs, and what nodes can hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.chaos.history import History, Row

#: `max_retries` of the jobs that retry themselves; the others have none
_RETRIES = {"retries": 6}


def one_result(history: History) -> Iterator[str]:
    for job_id, job in history.jobs.items():
        attempts = history.attempts.get(job_id, [])
        completed = [row["token"] for row in attempts if row["state"] == "completed"]
        if job["state"] == "completed":
            newest = max((row["token"] for row in attempts), default=None)
            if completed != [newest] or job["current_token"] != newest:
                tokens = f"completed {completed}, current {job['current_token']}, newest {newest}"
                yield f"job {job_id} is completed, and its attempts' tokens are: {tokens}"
        elif completed:
            yield f"job {job_id} is {job['state']} and its attempts {completed} are completed"


def tokens_rise(history: History) -> Iterator[str]:
    for job_id, attempts in history.attempts.items():
        for before, after in pairwise(attempts):
            if after["token"] <= before["token"] or after["number"] != before["number"] + 1:
                yield f"job {job_id}: attempt {after['number']} has token {after['token']} after {before['token']}"


def no_older_token(history: History) -> Iterator[str]:
    for job_id, events in history.events.items():
        newest = 0
        for event in events:
            if event["token"] is not None and event["token"] < newest:
                yield f"job {job_id}: event {event['seq']} is of token {event['token']}, after one of {newest}"
            newest = max(newest, event["token"] or 0)


def no_overlap(history: History) -> Iterator[str]:
    for job_id, attempts in history.attempts.items():
        for before, after in pairwise(attempts):
            if before["ended_at"] is None or before["ended_at"] > after["assigned_at"]:
                yield f"job {job_id}: attempt {before['number']} had not ended when {after['number']} was placed"


def epochs_rise(history: History) -> Iterator[str]:
    newest = 0
    for event in sorted(history.record.get("events", []), key=lambda row: row["seq"]):
        if event["epoch"] < newest:
            yield f"event {event['seq']} was written under epoch {event['epoch']}, after one under {newest}"
        newest = max(newest, event["epoch"])
    current = max((row["epoch"] for row in history.record.get("leadership", [])), default=newest)
    if newest > current:
        yield f"an event was written under epoch {newest}, and only {current} have led"


def capacity(history: History) -> Iterator[str]:
    nodes = {node["id"]: node for node in history.record.get("nodes", [])}
    by_node: dict[str, list[Row]] = defaultdict(list)
    for attempts in history.attempts.values():
        for attempt in attempts:
            # A gang keeps the place of a member that has ended, but not on a node that starts anew meanwhile.
            for place in history.places(attempt):
                held = {"gpus": place["gpus"], "ended_at": place["ended_at"] or attempt["ended_at"]}
                by_node[place["node_id"]].append(attempt | held)
    for node_id, attempts in by_node.items():
        slots = nodes[node_id]["slots"]
        most, at = _most_at_once(attempts)
        if most > slots:
            yield f"node {nodes[node_id]['name']} with {slots} slots had {most} attempts at {at:.3f}"
        for gpu in {gpu for attempt in attempts for gpu in attempt["gpus"]}:
            most, at = _most_at_once([attempt for attempt in attempts if gpu in attempt["gpus"]])
            if most > 1:
                yield f"GPU {gpu} of node {nodes[node_id]['name']} had {most} attempts at {at:.3f}"


def _most_at_once(attempts: list[Row]) -> tuple[int, float]:
    # At one moment ends come before starts.
    changes = [(row["assigned_at"], 1) for row in attempts]
    changes += [(row["ended_at"], -1) for row in attempts if row["ended_at"] is not None]
    now = most = 0
    when = 0.0
    for at, change in sorted(changes):
        now += change
        if now > most:
            most, when = now, at
    return most, when


def retry_budget(history: History) -> Iterator[str]:
    for job_id, attempts in history.attempts.items():
        submitted = history.submitted.get(job_id)
        limit = 1 + _RETRIES.get(submitted["kind"] if submitted else "", 0)
        errors = sum(row["cause"] == "error" for row in attempts)
        if errors > limit:
            yield f"job {job_id}: {errors} attempts failed by its own error, and {limit} are allowed"
