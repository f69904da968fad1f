"""Celery's canvas over jobs: chains, groups, chords, links and error links, through the scheduler and the nodes."""

from __future__ import annotations

import lab_jobs
import pytest
from celery import chain, chord, group


def test_a_chain_hands_each_result_on(laboratory):
    result = chain(lab_jobs.add.s(1, 2), lab_jobs.add.s(10), lab_jobs.add.s(100)).apply_async()
    assert result.get(timeout=30) == 113


def test_a_group_runs_all_its_members(laboratory):
    result = group(lab_jobs.add.s(i, i) for i in range(6)).apply_async()
    assert result.get(timeout=30) == [0, 2, 4, 6, 8, 10]


def test_a_chord_calls_its_body_once_with_every_result(laboratory):
    result = chord([lab_jobs.add.s(i, i) for i in range(5)], lab_jobs.total.s()).apply_async()
    assert result.get(timeout=30) == 20


def test_a_chain_into_a_group_into_a_body(laboratory):
    result = chain(
        lab_jobs.add.s(1, 1), group(lab_jobs.add.s(1), lab_jobs.add.s(2)), lab_jobs.total.s(), lab_jobs.add.s(1)
    ).apply_async()
    assert result.get(timeout=30) == 8


def test_requirements_travel_with_every_link_of_a_chain(laboratory):
    result = chain(lab_jobs.needs_a_gpu.s(3), lab_jobs.needs_a_gpu.s()).apply_async()
    assert result.get(timeout=30) == 12
    for link in (result, result.parent):
        [attempt] = laboratory.client.get(link.id).record()["attempts"]
        assert attempt["node"] in {"big", "mid"}


def test_a_failing_member_fails_the_chain_and_the_chord(laboratory):
    broken_chain = chain(lab_jobs.fails.si("broken link"), lab_jobs.add.si(1, 1)).apply_async()
    with pytest.raises(ValueError, match="broken link"):
        broken_chain.parent.get(timeout=30)
    broken_chord = chord([lab_jobs.add.s(1, 1), lab_jobs.fails.si("broken member")], lab_jobs.total.s()).apply_async()
    with pytest.raises(Exception, match="broken member"):
        broken_chord.get(timeout=30)


def test_a_link_runs_after_success_and_an_error_link_after_failure(laboratory, tmp_path):
    done, failed = tmp_path / "done", tmp_path / "failed"
    done.touch()
    failed.touch()
    lab_jobs.add.apply_async((1, 1), link=lab_jobs.waits_for.si(str(done)))
    lab_jobs.fails.apply_async(link_error=lab_jobs.waits_for.si(str(failed)))
    laboratory.wait_until(lambda: (tmp_path / "done.started").exists() and (tmp_path / "failed.started").exists())
