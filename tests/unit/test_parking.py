"""Who is not placed for now, and for how long."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from broker.scheduler.backlog import Waiting
from broker.scheduler.parking import Parked, PlacingFailed, blaming
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority

ONE_GPU = Waiting("a", 1, Resources(gpus=1), Priority.NORMAL)
NOTHING = Waiting("b", 2, Resources(), Priority.NORMAL)


def test_a_shape_is_parked_with_all_its_jobs_and_nobody_else():
    parked = Parked()
    assert parked.park(PlacingFailed(ValueError(), shape=ONE_GPU.resources.shape), 0.0) == 60.0
    assert parked.until(ONE_GPU) is not None
    assert "ValueError" in (parked.story(ONE_GPU) or "")
    assert (parked.until(NOTHING), parked.story(NOTHING)) == (None, None)


def test_a_job_that_fails_again_waits_twice_as_long_up_to_an_hour_and_never_less_than_is_asked():
    parked, failed = Parked(), PlacingFailed(ValueError(), job_ids=["b"])
    assert [parked.park(failed, 0.0) for _ in range(8)] == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert parked.until(NOTHING) is not None
    assert Parked().park(failed, 100.0) == 100.0


@pytest.mark.parametrize("job_ids", [[], ["a", "b"]])
def test_nobody_is_to_blame_while_it_may_be_several(job_ids):
    with pytest.raises(PlacingFailed) as caught, blaming(job_ids=job_ids):
        raise ZeroDivisionError
    assert caught.value.key is None


def test_servers_and_moments_are_not_blamed_on_jobs():
    for kind in (OperationalError, IntegrityError):
        with pytest.raises(kind), blaming("shape"):
            raise kind("", None, Exception())
    with pytest.raises(PlacingFailed) as inner, blaming("outer"), blaming("inner"):
        raise ValueError
    assert inner.value.key == "inner"
