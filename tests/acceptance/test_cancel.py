"""Cancel from every side and in every state: the processes are gone, the memory is free, the state is REVOKED."""

from __future__ import annotations

import time
from pathlib import Path

import lab_jobs
import psutil
import pytest

from cyxwiz_tasks import Resources
from cyxwiz_tasks.errors import JobCancelled

CANCEL_TO_GONE_SECONDS = 20.0


def start_a_stubborn_job(laboratory, folder: Path):
    pids = folder / "pids"
    handle = lab_jobs.ignores_everything.submit(str(pids))
    laboratory.wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    return handle, [int(pid) for pid in pids.read_text().split()]


def assert_all_gone(laboratory, pids: list[int], asked_at: float) -> None:
    laboratory.wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert time.monotonic() - asked_at < CANCEL_TO_GONE_SECONDS


def test_a_running_job_that_ignores_sigterm_and_its_grandchild(laboratory, tmp_path):
    handle, pids = start_a_stubborn_job(laboratory, tmp_path)
    asked_at = time.monotonic()
    handle.cancel()
    with pytest.raises(JobCancelled):
        handle.result(timeout=10)
    assert_all_gone(laboratory, pids, asked_at)
    assert handle.async_result.state == "REVOKED"
    assert handle.record()["state"] == "cancelled"


def test_a_running_job_from_the_command_line(laboratory, tmp_path):
    handle, pids = start_a_stubborn_job(laboratory, tmp_path)
    asked_at = time.monotonic()
    assert laboratory.cyxwiz("cancel", handle.id).returncode == 0
    assert_all_gone(laboratory, pids, asked_at)
    laboratory.wait_until(lambda: handle.async_result.state == "REVOKED")


def test_a_running_job_by_celerys_revoke_with_terminate(laboratory, tmp_path):
    handle, pids = start_a_stubborn_job(laboratory, tmp_path)
    asked_at = time.monotonic()
    handle.async_result.revoke(terminate=True)
    assert_all_gone(laboratory, pids, asked_at)
    laboratory.wait_until(lambda: handle.async_result.state == "REVOKED")
    laboratory.wait_until(lambda: handle.record()["state"] == "cancelled")


@pytest.mark.parametrize("by", ["handle", "revoke"])
def test_a_waiting_job(laboratory, by):
    handle = lab_jobs.add.options(resources=Resources(labels={"planet": "mars"})).submit(1, 1)
    assert handle.state == "ACCEPTED"
    handle.cancel() if by == "handle" else handle.async_result.revoke()
    with pytest.raises(JobCancelled):
        handle.result(timeout=10)
    assert handle.async_result.state == "REVOKED"


def test_cancelling_what_has_ended_changes_nothing(laboratory):
    handle = lab_jobs.add.submit(1, 1)
    assert handle.result(timeout=30) == 2
    handle.cancel()
    assert handle.result(timeout=30) == 2
    assert handle.record()["state"] == "completed"


def test_places_are_free_again_after_a_cancel(laboratory, tmp_path):
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        handle, _ = start_a_stubborn_job(laboratory, folder)
        handle.cancel()
    laboratory.wait_until(lambda: all(node["running"] == 0 for node in laboratory.client.nodes()))
    assert lab_jobs.add.submit(1, 1).result(timeout=30) == 2
