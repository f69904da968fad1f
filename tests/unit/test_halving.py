"""Successive halving, with values computed by hand."""

from __future__ import annotations

import math

import pytest

from broker.scheduler.halving import Cut, Rungs
from cyxwiz_tasks import SuccessiveHalving
from cyxwiz_tasks.errors import InvalidJob

ALL = "abcdefghi"


def on_rung(rungs: Rungs, epoch: int, **values: float) -> None:
    """Each job reports its value of this epoch, and then goes on to the next."""
    for job_id, value in values.items():
        rungs.tell(job_id, epoch, value)
        rungs.tell(job_id, epoch + 1, 0.123)


def names(cuts: list[Cut]) -> str:
    return "".join(sorted(cut.job_id for cut in cuts))


def test_of_nine_jobs_three_go_on_and_of_these_one():
    rungs = Rungs(SuccessiveHalving("accuracy", rung_epochs=(1, 3), keep=1 / 3))
    on_rung(rungs, 1, a=0.1, b=0.9, c=0.3, d=0.8, e=0.5, f=0.6, g=0.7, h=0.2, i=0.4)
    # The best three of nine: 0.9 (b), 0.8 (d), 0.7 (g).
    cuts = rungs.cuts(ALL)
    assert names(cuts) == "acefhi"
    assert cuts[0] == Cut("f", 1, 0.6, rank=4, of=9, kept=3)
    assert cuts[-1] == Cut("a", 1, 0.1, rank=9, of=9, kept=3)
    on_rung(rungs, 3, b=0.91, d=0.95, g=0.93)
    assert rungs.cuts("bdg") == [Cut("g", 3, 0.93, 2, 3, 1), Cut("b", 3, 0.91, 3, 3, 1)]
    assert rungs.cuts("") == []


def test_nobody_ends_before_one_would_be_kept():
    rungs = Rungs(SuccessiveHalving("loss", "min", rung_epochs=(2,), keep=0.25))
    on_rung(rungs, 2, a=4.0, b=3.0, c=2.0)
    assert rungs.cuts(ALL) == []  # a quarter of three is none
    on_rung(rungs, 2, d=1.0)
    assert names(rungs.cuts(ALL)) == "abc"  # a quarter of four is one: the lowest loss
    on_rung(rungs, 2, e=0.5, f=5.0, g=6.0)
    assert names(rungs.cuts(ALL)) == "abcdfg"  # of seven still one, and d is not the best any more
    on_rung(rungs, 2, h=7.0)
    assert names(rungs.cuts(ALL)) == "abcfgh"  # of eight two: d would have stayed


def test_a_job_is_on_a_rung_when_its_epoch_is_over_with_what_it_said_last():
    rungs = Rungs(SuccessiveHalving("accuracy", rung_epochs=(1,), keep=0.5))
    for value in (0.9, 0.2):  # the first is of the first steps of the epoch
        rungs.tell("a", 1, value)
    on_rung(rungs, 1, b=0.5)
    assert rungs.cuts(ALL) == []
    rungs.tell("a", 2, 0.99)
    assert rungs.cuts(ALL) == [Cut("a", 1, 0.2, 2, 2, 1)]


def test_a_report_without_the_metric_says_that_the_epoch_before_is_over():
    rungs = Rungs(SuccessiveHalving("val_accuracy", rung_epochs=(1,), keep=0.5))
    for job_id, value in (("a", 0.2), ("b", 0.5)):
        rungs.tell(job_id, 1, None)
        rungs.tell(job_id, 1, value)
        assert rungs.cuts(ALL) == []
        rungs.tell(job_id, 2, None)
    rungs.tell("c", 2, None)  # it has never said one, and is not judged
    assert rungs.cuts(ALL) == [Cut("a", 1, 0.2, 2, 2, 1)]


def test_who_has_come_to_the_next_rung_is_not_judged_by_this_one():
    rungs = Rungs(SuccessiveHalving("accuracy", rung_epochs=(1, 2), keep=0.5))
    on_rung(rungs, 1, a=0.1)
    rungs.tell("a", 3, 0.2)
    on_rung(rungs, 1, b=0.9, c=0.8, d=0.05)
    assert names(rungs.cuts(ALL)) == "d"  # number 4 of 4; a is number 3, and already beyond
    # One that skips a rung is on it with what it had before.
    rungs.tell("e", 1, 0.95)
    rungs.tell("e", 7, 0.1)
    assert names(rungs.cuts(ALL)) == "acd"  # on rung 1, c and d are below e and b; on rung 2, a is below e


def test_a_job_that_begins_again_keeps_what_it_had_come_to():
    rungs = Rungs(SuccessiveHalving("accuracy", rung_epochs=(1,), keep=0.5))
    on_rung(rungs, 1, a=0.6, b=0.5)
    on_rung(rungs, 1, b=0.99)
    assert rungs.cuts(ALL) == [Cut("b", 1, 0.5, 2, 2, 1)]


def test_equal_ones_rank_as_they_came_and_what_is_no_number_comes_last():
    rungs = Rungs(SuccessiveHalving("loss", "min", rung_epochs=(1,), keep=0.5))
    on_rung(rungs, 1, a=math.nan, b=0.3, c=0.3, d=math.inf)
    assert [(cut.job_id, cut.rank) for cut in rungs.cuts(ALL)] == [("a", 3), ("d", 4)]


@pytest.mark.parametrize(
    ("keep", "count", "kept"), [(1 / 3, 3, 1), (1 / 3, 6, 2), (1 / 3, 99, 33), (0.29, 100, 29), (0.5, 5, 2)]
)
def test_a_share_is_rounded_down(keep, count, kept):
    rungs = Rungs(SuccessiveHalving("x", rung_epochs=(1,), keep=keep))
    jobs = {f"job-{number}": float(number) for number in range(count)}
    on_rung(rungs, 1, **jobs)
    assert len(rungs.cuts(list(jobs))) == count - kept


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"metric": ""}, "early_stopping.metric: '' is no name of a metric. Write SuccessiveHalving("),
        ({"metric": "x", "mode": "best"}, "early_stopping.mode: 'best' is neither 'max' nor 'min'"),
        ({"metric": "x", "rung_epochs": (3, 1)}, "early_stopping.rung_epochs: (3, 1) do not rise"),
        ({"metric": "x", "rung_epochs": [0.5]}, "early_stopping.rung_epochs: [0.5] are no numbers of epochs"),
        ({"metric": "x", "keep": 3}, "early_stopping.keep: 3 is no share between 0 and 1"),
        ({"metric": "x", "rungs": [1]}, "early_stopping.rungs: is no field of it"),
        ({"mode": "max"}, "early_stopping: names no metric"),
    ],
)
def test_rules_that_cannot_be(fields, told):
    with pytest.raises(InvalidJob) as raised:
        SuccessiveHalving.parse(fields)
    assert told in str(raised.value)
