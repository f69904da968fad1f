"""What clients were told, against what is recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.chaos.history import History


def accepted_jobs_exist(history: History) -> Iterator[str]:
    for line in history.ops("submit", "ok"):
        if line["value"] not in history.jobs:
            yield f"job {line['value']} was accepted and is not in the record"


def no_job_from_nowhere(history: History) -> Iterator[str]:
    known = set(history.submitted)
    for line in history.ops("submit", "invoke"):
        known.update(line.get("links") or ())
    for job_id in history.jobs:
        if job_id not in known:
            yield f"job {job_id} was submitted by nobody"


def one_job_for_each_key(history: History) -> Iterator[str]:
    recorded: dict[tuple[str, str], list[str]] = defaultdict(list)
    for job in history.jobs.values():
        if job["idempotency_key"] is not None:
            recorded[job["owner"], job["idempotency_key"]].append(job["id"])
    for (_, key), ids in recorded.items():
        if len(ids) > 1:
            yield f"key {key} has the jobs {sorted(ids)}"
    answers: dict[str, set[str]] = defaultdict(set)
    for line in history.ops("submit", "ok"):
        if line.get("key"):
            answers[line["key"]].add(line["value"])
    for key, ids in answers.items():
        if len(ids) > 1:
            yield f"key {key} was answered by {sorted(ids)}"


def refused_did_not_happen(history: History) -> Iterator[str]:
    for line in history.ops("submit", "fail"):
        if line["job"] in history.jobs:
            yield f"job {line['job']} was refused ({line.get('error')}) and is in the record"


def results_agree(history: History) -> Iterator[str]:
    for line in history.ops("result", "ok"):
        job = history.jobs.get(line["job"])
        if job is None or job["state"] != line["outcome"]:
            state = "missing" if job is None else job["state"]
            why = line.get("error", "")
            yield f"job {line['job']}: a client read {line['outcome']} and the record says {state} {why}".rstrip()


def chains_go_on(history: History) -> Iterator[str]:
    chains = {tuple(line["links"]) for line in history.ops("submit", "invoke") if line.get("links")}
    for links in sorted(chains):
        for before, after in pairwise(links):
            if before in history.jobs and history.jobs[before]["state"] == "completed" and after not in history.jobs:
                yield f"job {before} of a chain is completed and its next link {after} is not in the record"
