"""What a run left behind, read from its files, and the look-ups that invariants share. Nothing here asks a server."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ENDED = frozenset({"completed", "failed", "cancelled"})
LIVE = frozenset({"assigned", "running"})
#: kinds of jobs that run on two nodes at once
GANGS = frozenset({"gang", "gang_saves", "gang_fails", "gang_cancelled", "gang_urgent"})
GANG_SIZE = 2
#: kinds of jobs that take the place of all others
URGENT = frozenset({"urgent", "gang_urgent"})


@dataclass
class History:
    """`record` holds the tables' rows by table; the other lists hold lines of the files of the same name."""

    run: Row = field(default_factory=dict)
    client: list[Row] = field(default_factory=list)
    witness: list[Row] = field(default_factory=list)
    nemesis: list[Row] = field(default_factory=list)
    record: dict[str, list[Row]] = field(default_factory=dict)
    leftovers: Row = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    @cached_property
    def jobs(self) -> dict[str, Row]:
        return {job["id"]: job for job in self.record.get("jobs", [])}

    @cached_property
    def attempts(self) -> dict[str, list[Row]]:
        """By job, in the order of their numbers."""
        return _grouped(sorted(self.record.get("attempts", []), key=lambda row: row["number"]), "job_id")

    @cached_property
    def members(self) -> dict[int, list[Row]]:
        """Of gangs, by the token of their attempt, by rank. Runs before there were gangs have none."""
        return _grouped(sorted(self.record.get("gang_members", []), key=lambda row: row["rank"]), "lead")

    def places(self, attempt: Row) -> list[Row]:
        """Where it is or was: one row for each member of a gang, or the attempt itself."""
        return self.members.get(attempt["token"], [attempt])

    def given_up(self, attempt: Row, rank: int) -> bool:
        """Whether the scheduler took this process's place back: its node was not heard, so it may run on unheard."""
        if attempt["token"] not in self.members:
            return bool(attempt["state"] == "lost")
        reports = [row["report"] or {} for row in self.members[attempt["token"]] if row["rank"] == rank]
        return any(report.get("taken_back") for report in reports)

    @cached_property
    def events(self) -> dict[str, list[Row]]:
        """By job, in their order; those of nodes are left out."""
        rows = sorted(self.record.get("events", []), key=lambda row: row["seq"])
        return _grouped([row for row in rows if row["job_id"] is not None], "job_id")

    @cached_property
    def asked_to_leave(self) -> list[Row]:
        """Each attempt that had to give its place to another job: `job_id`, `token`, `claimant`, `node_ids`."""
        notes = (event for event in self.record.get("events", []) if "preempted_for" in (event.get("detail") or {}))
        return [
            {**event, "claimant": event["detail"]["preempted_for"], "node_ids": event["detail"]["node_ids"]}
            for event in notes
        ]

    @cached_property
    def steps(self) -> dict[tuple[str, int], list[Row]]:
        """By job and attempt, in the order in which they were written."""
        found: dict[tuple[str, int], list[Row]] = defaultdict(list)
        for line in self.witness:
            found[line["job"], line["attempt"]].append(line)
        return found

    def steps_by_rank(self, job_id: str, number: int) -> dict[int, list[Row]]:
        """What each process of an attempt wrote; of a job that is no gang there is rank 0 alone."""
        found: dict[int, list[Row]] = defaultdict(list)
        for line in self.steps.get((job_id, number), []):
            found[line.get("rank", 0)].append(line)
        return found

    def kind(self, job_id: str) -> str | None:
        """What the client sent under this id."""
        submitted = self.submitted.get(job_id)
        return None if submitted is None else str(submitted["kind"])

    @cached_property
    def submitted(self) -> dict[str, Row]:
        """By the id that the client chose, the first line of each submission."""
        found: dict[str, Row] = {}
        for line in self.ops("submit", "invoke"):
            found.setdefault(line["job"], line)
        return found

    def ops(self, op: str, *types: str) -> Iterator[Row]:
        """The client's lines of one operation."""
        return (line for line in self.client if line["op"] == op and line["type"] in types)

    @cached_property
    def killed_jobs(self) -> dict[str, int]:
        """How often the nemesis itself has ended the process of each job."""
        found: dict[str, int] = defaultdict(int)
        for line in self.faults:
            if line["kind"] == "kill_job" and line["hit"]:
                found[line["proof"]["job"]] += 1
        return found

    @cached_property
    def faults(self) -> list[Row]:
        """The last word on each fault."""
        return [line for line in self.nemesis if line["event"] == "ended"]

    def winner(self, job_id: str) -> Row | None:
        """The attempt that the job's record names as its newest."""
        token = self.jobs[job_id]["current_token"]
        return next((row for row in self.attempts.get(job_id, []) if row["token"] == token), None)


def _grouped(rows: list[Row], key: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[key]].append(row)
    return found


def read_history(folder: Path) -> History:
    """Read the files of a run. A last line that was cut off is left out."""
    return History(
        run=json.loads((folder / "run.json").read_text()),
        client=_lines(folder / "client.jsonl"),
        witness=_lines(folder / "witness.jsonl"),
        nemesis=_lines(folder / "nemesis.jsonl"),
        record=json.loads((folder / "record.json").read_text()),
        leftovers=json.loads((folder / "leftovers.json").read_text()),
        logs={path.stem: path.read_text(errors="replace") for path in sorted((folder / "logs").glob("*.log"))},
    )


def _lines(path: Path) -> list[Row]:
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
