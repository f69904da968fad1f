"""What is left in Redis, in the process table, at PostgreSQL and in the logs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from tests.chaos.history import ENDED, History

ALLOWED = Path(__file__).with_name("allowed_log_lines.txt")
_CELERY = {"completed": "SUCCESS", "failed": "FAILURE", "cancelled": "REVOKED"}
#: the last words of a leader that was replaced
REPLACED = "leads: stop and stand by"
#: what of Redis somebody still has to do
WORK = (
    "node.",
    "cyxwiz.inbox",
    "cyxwiz.reports",
    "cyxwiz.commands",
    "cyxwiz.queries",
    "cyxwiz.busy.",
    "cyxwiz.unacked",
)
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n((?:[ \t].*\n|\n)*)(\S.*)?")
#: between two tracebacks: they tell of one error, the last one, and of what came before it
_CHAINED = re.compile(
    r"(?:The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred):\s*$"
)
_UNHANDLED = re.compile(r".*(?:was never retrieved|Exception ignored in|Exception in thread).*")


def is_work(key: str) -> bool:
    return key.startswith(WORK)


def no_ghosts(history: History) -> Iterator[str]:
    for key, length in sorted(history.leftovers["redis"]["lengths"].items()):
        if is_work(key):
            yield f"{key!r} holds {length}"


def celery_agrees(history: History) -> Iterator[str]:
    """A state may be missing, after Redis was emptied; one that is there is true."""
    for job_id, state in sorted(history.leftovers["redis"]["states"].items()):
        job = history.jobs.get(job_id)
        if job is not None and job["state"] in ENDED and _CELERY[job["state"]] != state:
            yield f"job {job_id} is {job['state']} and Celery says {state}"


def no_orphans(history: History) -> Iterator[str]:
    for where in ("job_children", "processes"):
        for process in history.leftovers[where]:
            yield f"{where}: {process['pid']} {' '.join(process['command'])[:150]}"


def no_sessions(history: History) -> Iterator[str]:
    for name, count in history.leftovers["sessions"].items():
        if count:
            yield f"{count} {name} are left at PostgreSQL"


def no_secrets(history: History) -> Iterator[str]:
    for place in history.leftovers["secrets"]:
        yield f"a secret stands in {place}"


def no_tracebacks(history: History) -> Iterator[str]:
    allowed = [re.compile(line) for line in ALLOWED.read_text().splitlines() if line and not line.startswith("#")]
    for name, text in history.logs.items():
        tracebacks = list(_TRACEBACK.finditer(text))
        for found, following in zip_longest(tracebacks, tracebacks[1:]):
            if following is not None and _CHAINED.search(text, found.end(), following.start()):
                continue
            error, where = found[2] or "(cut off)", _last_place(found[1])
            if not any(pattern.search(error) for pattern in allowed):
                yield f"{name}: {error[:200]} at {where}"
        for found in _UNHANDLED.finditer(text):
            if not any(pattern.search(found[0]) for pattern in allowed):
                yield f"{name}: {found[0][:200]}"


def _last_place(frames: str) -> str:
    places = re.findall(r'File "([^"]+)", line (\d+)', frames)
    ours = [place for place in places if re.search(r"/(cyxwiz_tasks|workers|broker|db)/", place[0])]
    file, line = (ours or places or [("?", "?")])[-1]
    return f"{'/'.join(Path(file).parts[-2:])}:{line}"


def no_own_deaths(history: History) -> Iterator[str]:
    """Signals of the nemesis end them, and so does an order to stop. A leader that was replaced says so and ends."""
    for death in history.leftovers["deaths"]:
        replaced = death["name"].startswith("scheduler") and REPLACED in history.logs.get(death["name"], "")
        if death["status"] not in (0, -9) and not (death["status"] == 1 and replaced):
            yield f"{death['name']} ended with status {death['status']}"
