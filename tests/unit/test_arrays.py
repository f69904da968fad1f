"""Arrays: their jobs out of parameters, their ids, and how many of them may be at work."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from broker.scheduler.arrays import Arrays
from broker.scheduler.backlog import Waiting
from cyxwiz_tasks import Client, SuccessiveHalving, TrainingJob, job
from cyxwiz_tasks.array_parameters import array_of, combinations
from cyxwiz_tasks.cli.array import grid_of
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.ids import member_id, new_id
from cyxwiz_tasks.protocol.headers import ARRAY_LIMIT, JobHeader
from cyxwiz_tasks.protocol.names import HEADER
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from cyxwiz_tasks.submission import Member, Preparation

DIGITS = TrainingJob(model="cnn", dataset="digits", epochs=3)


@job
def step(rate: float, seed: int = 0) -> None:
    pass


def test_a_grid_is_every_combination_the_last_name_fastest():
    assert combinations({"a": [1, 2], "b": range(3)}) == [
        {"a": a, "b": b} for a, b in [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    ]
    assert combinations([{"a": 1}, {"b": 2}]) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, r"parameters: are empty\. Write \{\"learning_rate\""),
        ([], "parameters: are empty"),
        ({"rate": []}, r"parameters\.rate: has no values"),
        ({"model": "cnn"}, r"parameters\.model: 'cnn' is no list of values"),
        ({"rate": 0.1}, r"parameters\.rate: '0\.1' is no list"),
        ([1, 2], "a list is no grid and no list of dicts"),
        ({"a": range(1000), "b": range(1000)}, f"make 1000000 jobs, allowed in one array are {ARRAY_LIMIT}"),
    ],
)
def test_parameters_that_make_no_array(parameters, told):
    with pytest.raises(InvalidJob, match=told):
        combinations(parameters)


def test_jobs_of_an_array_differ_in_their_parameters_and_are_named_for_them():
    array, jobs = array_of(DIGITS, {"learning_rate": [0.1, 0.01]}, 1, None, None, None, {})
    assert [made.learning_rate for made, _ in jobs] == [0.1, 0.01]
    assert all(made.epochs == 3 for made, _ in jobs)
    assert [own["name"] for _, own in jobs] == ["cnn learning_rate=0.1", "cnn learning_rate=0.01"]
    assert [own["id"] for _, own in jobs] == [member_id(array.id, n) for n in range(2)]
    assert (array.size, array.at_most, array.name) == (2, 1, "cnn")
    _, jobs = array_of(step.s(seed=7), [{"rate": 1}, {"rate": 2, "seed": 8}], None, None, new_id(), "try", {})
    assert [(made.kwargs, own["name"]) for made, own in jobs] == [
        ({"seed": 7, "rate": 1}, "try rate=1"),
        ({"seed": 8, "rate": 2}, "try rate=2 seed=8"),
    ]
    assert array_of(step, [{"rate": 1}], None, None, None, None, {})[1][0][0].kwargs == {"rate": 1}


def test_an_immutable_signature_gets_its_parameters():
    _, jobs = array_of(step.si(seed=7), {"rate": [1, 2]}, None, None, None, None, {})
    assert [made.kwargs for made, _ in jobs] == [{"seed": 7, "rate": 1}, {"seed": 7, "rate": 2}]
    assert all(made.immutable for made, _ in jobs)


@pytest.mark.parametrize(
    ("job", "parameters", "more", "told"),
    [
        (DIGITS, {"learning_rat": [1]}, {}, "learning_rat: is no field of a TrainingJob (did you mean"),
        (DIGITS, {"epochs": [1, -1]}, {}, "epochs: must be more than 0"),
        (3, [{"rate": 1}], {}, "a int is not one job. Pass a TrainingJob"),
        (DIGITS, {"epochs": [1]}, {"at_most": 0}, "at_most: 0 is not a number of jobs"),
        (DIGITS, {"epochs": [1]}, {"rule": "asha"}, "early_stopping: 'asha' is no rule. Write SuccessiveHalving("),
        (DIGITS, {"epochs": [1]}, {"options": {"idempotency_key": "x"}}, "Give the array an id"),
    ],
)
def test_arrays_that_cannot_be(job, parameters, more, told):
    with pytest.raises(InvalidJob) as raised:
        array_of(job, parameters, more.get("at_most"), more.get("rule"), None, None, more.get("options", {}))
    assert told in str(raised.value)


def test_arguments_that_the_function_does_not_have_are_told():
    with Client("redis://127.0.0.1:1/0") as client, pytest.raises(TypeError, match="speed"):
        client.map(step, {"speed": [1, 2]})


def test_messages_of_an_array_say_where_they_belong():
    array, jobs = array_of(step, {"rate": [1, 2]}, 2, SuccessiveHalving("loss", "min"), None, None, {})
    with Client("redis://127.0.0.1:1/0") as client:
        preparation = Preparation(client.app, None)
        made = [preparation.prepare(one, own, Member(array, n)) for n, (one, own) in enumerate(jobs)]
        alone = preparation.prepare(step.s(1), {"name": "alone"})
    headers = [JobHeader.model_validate(json.loads(one.message)["headers"][HEADER]) for one in (*made, alone)]
    assert [(header.array, header.array_index) for header in headers] == [(array, 0), (array, 1), (None, None)]
    assert len(preparation._kinds) == 2


def test_ids_of_members_are_uuids_of_their_own_beside_their_arrays():
    array_id = new_id()
    ids = [member_id(array_id, index) for index in range(1000)]
    assert len({*ids, array_id}) == 1001
    assert ids[3] == member_id(array_id, 3)
    assert {(UUID(id).version, id[:13]) for id in ids} == {(8, array_id[:13])}


def test_a_grid_on_the_command_line():
    assert grid_of(("learning-rate=0.1,1e-2", "model=cnn,mlp", "seed=1")) == {
        "learning_rate": [0.1, 0.01],
        "model": ["cnn", "mlp"],
        "seed": [1],
    }
    with pytest.raises(InvalidJob, match="grid: 'seed' has no name or no values"):
        grid_of(("seed",))


def waiting(number: int) -> Waiting:
    return Waiting(f"job-{number}", number, Resources(), Priority.NORMAL)


def array_of_jobs(count: int, limit: int | None) -> Arrays:
    arrays = Arrays()
    for number in range(count):
        arrays.join(f"job-{number}", "array", limit)
    return arrays


def test_no_more_than_the_limit_are_at_work_and_the_oldest_come_next():
    arrays = array_of_jobs(5, 2)
    assert [arrays.enter(waiting(number)) for number in (0, 1, 4, 3, 2)] == [True, True, False, False, False]
    assert (arrays.limit_of("job-2"), arrays.limit_of("job-0")) == (2, None)
    assert arrays.admit() == []
    assert arrays.forget("job-0") == "array"
    arrays.leave_place("job-1")
    assert arrays.admit() == [waiting(2), waiting(3)]
    # The one that gave its place back waits for the next.
    assert not arrays.enter(waiting(1))
    arrays.forget("job-2")
    assert arrays.admit() == [waiting(1)]


def test_one_that_is_tried_again_keeps_its_place_if_nobody_got_it():
    arrays = array_of_jobs(2, 1)
    assert (arrays.enter(waiting(0)), arrays.enter(waiting(1))) == (True, False)
    arrays.leave_place("job-0")
    assert arrays.enter(waiting(0))
    assert arrays.admit() == []


def test_those_that_wait_no_longer_get_no_place():
    arrays = array_of_jobs(3, 1)
    for number in range(3):
        arrays.enter(waiting(number))
    assert (arrays.let_go("job-1"), arrays.let_go("job-1")) == (True, False)
    assert arrays.forget("job-1") == "array"
    arrays.forget("job-0")
    assert arrays.admit() == [waiting(2)]
    assert arrays.forget("job-2") == "array"
    assert arrays.forget("job-2") is None
    assert arrays.enter(waiting(2))


def test_a_new_leader_counts_what_is_on_nodes():
    arrays = array_of_jobs(3, 1)
    arrays.take_place("job-2")
    assert not arrays.enter(waiting(0))
    arrays.take_place("of no array")
    arrays.leave_place("of no array")
    arrays.forget("job-2")
    assert arrays.admit() == [waiting(0)]
