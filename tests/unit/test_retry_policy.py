"""What becomes of a job whose attempt ended without a result."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.scheduler.retry_policy import (
    BACKOFF_CAP_SECONDS,
    BUDGETS,
    FINAL,
    FREE,
    OWN,
    QUICK_LOSS_SECONDS,
    SHORT_PAUSE_SECONDS,
    SPIN_CAP_SECONDS,
    Decision,
    End,
    Fail,
    Hold,
    Retry,
    Wishes,
    decide,
)
from cyxwiz_tasks.quantities import SizeRange
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Cause

GB = 2**30
#: causes that an attempt may end by without its job having ended
JUDGED = sorted(OWN | FREE | FINAL | set(BUDGETS))


def end(cause: str, number: int = 1, **values: Any) -> End:
    return End(number, Cause(cause), **{"node": f"n{number}", "node_id": f"id-{number}"} | values)


def ends(*causes: str, **values: Any) -> list[End]:
    return [end(cause, number, **values) for number, cause in enumerate(causes, 1)]


def fate(wishes: Wishes, *causes: str, chance: float = 1.0, **values: Any) -> Decision:
    """The decision on the last of these ends."""
    *before, last = ends(*causes, **values)
    return decide(wishes, last, before, chance)


THREE = Wishes(max_retries=3)

TABLE: list[tuple[Wishes, list[str], type[Decision], float | None]] = [
    # without a wish, what is the job's own fault is final
    (Wishes(), ["error"], Fail, None),
    (Wishes(), ["crashed"], Fail, None),
    (Wishes(), ["out_of_memory"], Fail, None),
    # its own faults share one budget, and each cause has its own pause
    (THREE, ["error"], Retry, 1.0),
    (THREE, ["error", "error"], Retry, 2.0),
    (THREE, ["error", "crashed"], Retry, 1.0),
    (THREE, ["error", "error", "error"], Retry, 4.0),
    (THREE, ["error", "out_of_memory", "crashed", "error"], Fail, None),
    # what nodes and networks do does not count
    (THREE, ["node_lost", "network", "error", "hardware", "preempted", "hung", "error"], Retry, 2.0),
    (Wishes(), ["node_lost"], Retry, 0.0),
    (Wishes(), ["node_lost", "node_lost"], Retry, 0.5),
    (Wishes(), ["node_lost", "hung", "node_lost"], Retry, 0.5),
    (Wishes(), ["preempted"] * 1000, Retry, 0.5),
    (Wishes(), ["network"] * 10, Retry, 300.0),
    (Wishes(), ["network"] * 11, Fail, None),
    (Wishes(), ["hardware"] * 4, Retry, 8.0),
    (Wishes(), ["hardware"] * 11, Fail, None),
    (Wishes(), ["hung"] * 2, Retry, 2.0),
    (Wishes(max_retries=9), ["hung"] * 3, Fail, None),
    # nobody tries again what ran out of time
    (Wishes(max_retries=9), ["time_limit"], Fail, None),
    (Wishes(max_retries=9), ["deadline"], Fail, None),
    # poison
    (Wishes(max_retries=9), ["crashed"] * 2, Retry, 2.0),
    (Wishes(max_retries=9), ["crashed", "error", "crashed", "node_lost", "crashed"], Hold, None),
    (Wishes(max_retries=2), ["crashed"] * 3, Hold, None),
    (Wishes(), ["node_lost"] * 3, Hold, None),
]


@pytest.mark.parametrize(("wishes", "causes", "kind", "seconds"), TABLE)
def test_budgets_pauses_and_poison(
    wishes: Wishes, causes: list[str], kind: type[Decision], seconds: float | None
) -> None:
    decision = fate(wishes, *causes)
    assert type(decision) is kind
    if isinstance(decision, Retry):
        assert decision.after_seconds == seconds


@pytest.mark.parametrize(
    ("retry_on", "no_retry_on", "again"),
    [
        ((), (), True),
        (("OSError",), (), True),
        (("builtins.OSError",), (), True),
        (("mylab.errors.Flaky",), (), False),
        (("Error",), (), False),
        ((), ("ConnectionError",), False),
        (("OSError",), ("ConnectionResetError",), False),
        (("KeyError", "ConnectionResetError"), ("ValueError",), True),
    ],
)
def test_exceptions_are_tried_again_by_name_with_their_bases(
    retry_on: tuple[str, ...], no_retry_on: tuple[str, ...], again: bool
) -> None:
    names = ("builtins.ConnectionResetError", "builtins.ConnectionError", "builtins.OSError", "builtins.Exception")
    decision = decide(Wishes(1, retry_on, no_retry_on), end("error", exceptions=names), [], 0.5)
    assert isinstance(decision, Retry if again else Fail)


@pytest.mark.parametrize("retry_on", [(), ("JobFailed",)])
def test_a_result_that_cannot_be_kept_is_not_tried_again(retry_on: tuple[str, ...]) -> None:
    names = ("cyxwiz_tasks.errors.ResultRefused", "cyxwiz_tasks.errors.JobFailed")
    assert isinstance(decide(Wishes(9, retry_on), end("error", exceptions=names), [], 0.5), Fail)


def test_filters_are_for_exceptions_alone() -> None:
    assert isinstance(fate(Wishes(1, retry_on=("KeyError",)), "crashed"), Retry)


@pytest.mark.parametrize(
    ("field", "asked", "had", "learned"),
    [
        ("gpu_memory", {"gpus": 1}, 24 * GB, "27.6GB.."),
        ("gpu_memory", {"gpu_memory": "16GB..80GB"}, 24 * GB, "27.6GB..80GB"),
        ("gpu_memory", {"gpu_memory": "40GB"}, 24 * GB, "40.0GB.."),
        ("gpu_memory", {"gpu_memory": "16GB..24GB"}, 24 * GB, None),
        ("ram", {}, 500 * 2**20, "575MB.."),
        ("ram", {"ram": "8GB.."}, 64 * GB, "73.6GB.."),
    ],
)
def test_what_ran_out_of_memory_asks_for_more_than_it_had(
    field: str, asked: dict[str, Any], had: int, learned: str | None
) -> None:
    wishes = Wishes(max_retries=1, resources=Resources.parse(asked))
    decision = decide(wishes, end("out_of_memory", ran_out_of=field, had_bytes=had), [], 0.5)
    if learned is None:
        assert isinstance(decision, Fail)
        assert "allows no more" in decision.remark
    else:
        assert decision == Retry(0.5, {field: learned})
        Resources.parse(asked | {field: learned})


def test_a_story_names_every_attempt_and_what_to_do() -> None:
    decision = fate(Wishes(), "node_lost", "node_lost", "node_lost", message="went silent.\nmore")
    assert isinstance(decision, Hold)
    assert "3 different nodes went down soon after its start" in decision.story
    for number in (1, 2, 3):
        assert f"attempt {number} on n{number}: node_lost (went silent)" in decision.story
    assert "cyxwiz release" in decision.story


def test_only_losses_soon_after_a_start_make_poison() -> None:
    assert fate(Wishes(), *["node_lost"] * 9, started=False) == Retry(30.0)
    assert fate(Wishes(), *["node_lost"] * 4, started=False) == Retry(2.0)
    assert fate(Wishes(), *["node_lost"] * 9, started=False, seconds=60.0) == Retry(0.5)
    assert isinstance(fate(Wishes(), *["node_lost"] * 9, seconds=QUICK_LOSS_SECONDS), Retry)
    same = {"node_id": "one", "seconds": 3.0}
    assert isinstance(fate(Wishes(), *["node_lost"] * 5, **same), Retry)
    decision = fate(Wishes(), *["node_lost"] * 6, **same)
    assert isinstance(decision, Hold)
    assert "its node went down soon after its start, 6 times" in decision.story


def test_the_last_failure_says_that_it_was_not_the_first() -> None:
    assert fate(Wishes(max_retries=1), "error", "error") == Fail("tried 2 times")
    network = fate(Wishes(), *["network"] * 11)
    assert isinstance(network, Fail)
    assert "tried 11 times" in network.remark


histories = st.lists(
    st.builds(
        end,
        st.sampled_from(JUDGED),
        st.integers(1, 5),
        started=st.booleans(),
        seconds=st.floats(0, 2 * QUICK_LOSS_SECONDS),
    ),
    max_size=30,
)


@given(histories, st.sampled_from(JUDGED), st.integers(0, 5), st.floats(0, 1))
def test_every_end_has_one_fate_within_its_bounds(
    before: list[End], cause: str, max_retries: int, chance: float
) -> None:
    last = end(cause, len(before) + 1)
    decision = decide(Wishes(max_retries), last, before, chance)
    own = sum(past.cause in OWN for past in [*before, last])
    if isinstance(decision, Retry):
        caps = {Cause.PREEMPTED: SHORT_PAUSE_SECONDS, Cause.NODE_LOST: SPIN_CAP_SECONDS}
        cap = caps.get(last.cause, BACKOFF_CAP_SECONDS)
        assert 0 <= decision.after_seconds <= cap * chance or decision.after_seconds == 0
        assert last.cause not in OWN or own <= max_retries
        assert last.cause not in FINAL
    if isinstance(decision, Fail):
        assert last.cause not in FREE
        assert last.cause not in OWN or own > max_retries
    if isinstance(decision, Hold):
        assert last.cause in {Cause.CRASHED, Cause.NODE_LOST}


@given(histories, st.integers(0, 3))
def test_what_nodes_do_never_uses_up_a_jobs_own_tries(before: list[End], max_retries: int) -> None:
    innocent = [past for past in before if past.cause in FREE | set(BUDGETS)]
    decision = decide(Wishes(max_retries), end("error", len(before) + 1), innocent, 0.0)
    assert isinstance(decision, Retry if max_retries else Fail)


@given(st.integers(1, 200 * GB), st.sampled_from(["gpu_memory", "ram"]))
def test_more_memory_is_more_than_any_card_of_the_same_size_has(had: int, field: str) -> None:
    wishes = Wishes(max_retries=1, resources=Resources(gpus=1))
    decision = decide(wishes, end("out_of_memory", ran_out_of=field, had_bytes=had), [], 0.0)
    assert isinstance(decision, Retry)
    assert decision.learned is not None
    assert SizeRange.parse(decision.learned[field]).min_bytes * 0.93 > had * 1.06
