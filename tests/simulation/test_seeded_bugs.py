"""The simulation finds what it is there to find: bugs that are put in by hand, each within a few seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.scheduler.duties.reconcile import Reconcile
from broker.scheduler.duties.unstarted import Unstarted
from broker.scheduler.inbox import Inbox
from broker.scheduler.memory import Memory
from tests.simulation import fake_postgres
from tests.simulation.cluster import SimCluster
from tests.simulation.fake_redis import FakeRedis
from tests.simulation.memory_db import attempts
from tests.simulation.node import SimNode
from tests.simulation.world import Broken

SEEDS = 15


def _a_place_is_never_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "ended", lambda memory, job_id: memory.live.pop(job_id, None))


def _an_old_token_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = attempts._settle

    def unfenced(tx: Any, epoch: int, given: Any, actor: str) -> Any:
        old = tx.tables.attempts.get(given["token"])
        job = tx.tables.jobs[old.job_id] if old is not None else None
        if job is not None and actor == "node" and job.state in ("assigned", "running"):
            current = tx.tables.attempts[job.current_token]
            given = {**given, "token": job.current_token, "node_id": current.node_id}
        return settle(tx, epoch, given, actor)._replace()

    monkeypatch.setattr(attempts, "_settle", unfenced)


def _an_old_leader_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fake_postgres.FakePostgres.transaction
    monkeypatch.setattr(fake_postgres.FakePostgres, "transaction", lambda server, epoch=None: real(server))


def _what_was_taken_is_forgotten_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def drain(server: FakeRedis, keys: list[str], args: list[Any]) -> list[bytes]:
        return server.rpop(keys[0], int(args[0]))

    monkeypatch.setattr(FakeRedis, "drain", drain)
    monkeypatch.setattr(Inbox, "forget", lambda inbox, pipe, batch: pipe.commands.append((lambda: 1, ())))


def _lost_messages_are_not_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unstarted, "run_once", lambda duty: {})


def _zombies_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reconcile, "run_once", lambda duty: {})
    monkeypatch.setattr("broker.scheduler.registering._stop_what_is_not_current", lambda turn, report: None)


def _exclusive_jobs_outlive_their_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimNode, "_watch_link", lambda node: None)


def _jobs_that_wait_for_their_time_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "admit_due", lambda memory: 0)


#: what is put in, what strikes, and what is said of it
BUGS: list[tuple[Callable[[pytest.MonkeyPatch], None], tuple[str, ...], str]] = [
    (_a_place_is_never_free_again, (), "the leader's places are"),
    (_an_old_token_counts, ("node_frozen", "node_cut_off"), "another attempt"),
    (_an_old_leader_writes, ("scheduler_frozen",), "a word of epoch"),
    (_what_was_taken_is_forgotten_at_once, ("scheduler_killed",), "is lost"),
    (_lost_messages_are_not_published_again, ("message_lost", "scheduler_killed"), "is still"),
    (_zombies_are_left_alone, ("node_frozen", "node_cut_off"), "still runs"),
    (_exclusive_jobs_outlive_their_lease, ("node_cut_off",), "ran twice at once"),
    (_jobs_that_wait_for_their_time_are_forgotten, (), "is still"),
]


@pytest.mark.parametrize(("bug", "kinds", "complaint"), BUGS, ids=[bug.__name__.strip("_") for bug, _, _ in BUGS])
def test_a_seeded_bug_is_found(monkeypatch, bug, kinds, complaint):
    bug(monkeypatch)
    found = []
    for seed in range(SEEDS):
        try:
            SimCluster(seed, kinds=kinds).run()
        except Broken as broken:
            found.append(str(broken))
            if complaint in found[-1]:
                return
    pytest.fail(f"not found in {SEEDS} seeds; other complaints: {found[:1]}")
