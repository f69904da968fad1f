"""How the end of a job that was followed becomes an exit status."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from cyxwiz_tasks.cli.array import show_array
from cyxwiz_tasks.cli.follow import follow
from cyxwiz_tasks.cli.submit import _outcome
from cyxwiz_tasks.errors import CyxwizError, DataError, InvalidJob, JobFailed, ServerUnavailable


class Ended:
    """The handle of a job whose result is this error."""

    def __init__(self, error: CyxwizError) -> None:
        self._error = error

    def progress(self) -> list[Any]:
        return []

    def result(self) -> None:
        raise self._error


@pytest.mark.parametrize("error", [InvalidJob("model", "does not fit"), DataError("dataset: no")])
def test_a_job_that_failed_by_an_error_of_ours_is_no_wrong_use(error: CyxwizError) -> None:
    assert follow(Ended(error), Console()) == 1  # type: ignore[arg-type]
    with pytest.raises(CyxwizError, match=str(error)) as caught:
        _outcome(Ended(error))  # type: ignore[arg-type]
    assert not isinstance(caught.value, InvalidJob)


def test_a_redis_that_is_gone_says_nothing_of_the_job() -> None:
    error = ServerUnavailable("the Redis does not answer")
    with pytest.raises(ServerUnavailable):
        follow(Ended(error), Console())  # type: ignore[arg-type]
    with pytest.raises(ServerUnavailable):
        _outcome(Ended(error))  # type: ignore[arg-type]


def test_a_job_that_was_ended_keeps_its_cause() -> None:
    with pytest.raises(JobFailed, match="ran out of memory"):
        _outcome(Ended(JobFailed("the host ran out of memory")))  # type: ignore[arg-type]


class Interrupted:
    """An array whose follower presses Ctrl-C."""

    id = "0190f2c4-1111-7222-8333-74c5f36ef3e5"

    def counts(self) -> dict[str, int]:
        raise KeyboardInterrupt


@pytest.mark.parametrize("as_json", [False, True])
def test_who_stops_following_an_array_is_not_told_that_it_failed(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_array(Interrupted(), wanted=True, as_json=as_json) == 130  # type: ignore[arg-type]
    assert f"cyxwiz cancel --array {Interrupted.id}" in capsys.readouterr().err
