"""What goes into a statement is what PostgreSQL stores."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyxwiz_tasks.errors import InvalidJob, ProtocolError
from cyxwiz_tasks.states import AttemptState, JobState
from db.attempts import Ending, Start
from db.metrics import NewMetric
from db.new_jobs import NewJob
from db.rows import REPLACEMENT, clean, storable

ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def test_nul_and_half_surrogates_are_replaced_wherever_they_stand():
    assert json.loads(storable({"a\x00": ["b\x00c", "\ud800"]})) == {
        f"a{REPLACEMENT}": [f"b{REPLACEMENT}c", REPLACEMENT]
    }


def test_what_only_looks_like_nul_stays():
    value = {"path": "\\u0000", "emoji": "\U0001f600", "text": "grüße"}
    assert json.loads(storable(value)) == value


def test_numbers_that_json_has_not_become_texts_that_float_reads():
    stored = json.loads(storable({"loss": float("nan"), "best": [float("-inf")]}))
    assert stored == {"loss": "nan", "best": ["-inf"]}
    assert float(stored["best"][0]) == float("-inf")


def test_times_are_stored_with_their_zone_and_utc_without_one():
    assert json.loads(storable(datetime(2026, 1, 2, 3, tzinfo=UTC))) == "2026-01-02T03:00:00+00:00"
    assert json.loads(storable(datetime(2026, 1, 2, 3))) == "2026-01-02T03:00:00+00:00"


def test_other_values_are_refused():
    with pytest.raises(TypeError, match="set has no place"):
        storable({"a": {1}})


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_anything_becomes_storable_and_clean_values_stay(value):
    text = storable(value)
    stored = json.loads(text, parse_constant=pytest.fail)
    assert clean(stored) == stored
    text.encode()


def new_job(**values):
    given = {"task": "t", "resources": {}, "shape": "{}", "headers": {}, "body": "", "properties": {}, "digest": "00"}
    return NewJob(**{"id": ID, **given, **values})


@pytest.mark.parametrize("id", ["", "job-1", ID.upper(), ID.replace("-", "")])
def test_a_job_needs_a_uuid_in_its_usual_form(id):
    with pytest.raises(InvalidJob, match=r"^id: "):
        new_job(id=id)


@pytest.mark.parametrize("field", ["owner", "idempotency_key"])
def test_what_stands_in_an_index_is_short(field):
    assert new_job(**{field: "x" * 255})
    with pytest.raises(InvalidJob, match=f"^{field}: "):
        new_job(**{field: "x" * 256})


@pytest.mark.parametrize("odd", [{"job_id": "x"}, {"node_id": "x"}, {"token": 2**63}, {"pid": 2**31}])
def test_reports_with_odd_numbers_are_refused_one_by_one(odd):
    with pytest.raises(ProtocolError):
        Start(**{"job_id": ID, "token": 1, "node_id": ID, "pid": 1, "device": "cpu", **odd})


@pytest.mark.parametrize(
    ("state", "job_state"),
    [
        (AttemptState.RUNNING, JobState.FAILED),
        (AttemptState.FAILED, JobState.RUNNING),
        (AttemptState.COMPLETED, JobState.PENDING),
        (AttemptState.FAILED, JobState.COMPLETED),
    ],
)
def test_an_ending_that_cannot_be_is_refused(state, job_state):
    with pytest.raises(ValueError, match="attempt"):
        Ending(ID, 1, ID, state, job_state)


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_time_that_no_timestamp_holds_becomes_the_first_one(at):
    assert NewMetric(ID, 1, ID, at, {}).at == 0.0
