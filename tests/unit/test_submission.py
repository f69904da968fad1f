"""Jobs of one kind share the making of their messages, and nothing of one job ends up in another."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cyxwiz_tasks import Client, Resources, TrainingJob, job
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.protocol.names import HEADER
from cyxwiz_tasks.submission import Preparation

DIGITS = TrainingJob(model="cnn", dataset="digits", name="100 % sure")


@job
def step(number: object, **more: object) -> None:
    pass


@job(ignore_result=True, expires=60)
def brief() -> None:
    pass


@pytest.fixture
def preparation() -> Iterator[Preparation]:
    with Client("redis://127.0.0.1:1/0") as client:
        yield Preparation(client.app, "cyxwiz.reply.me")


def message(preparation: Preparation, what: Any, **options: Any) -> dict[str, Any]:
    submission = preparation.prepare(what, options)
    made: dict[str, Any] = json.loads(submission.message)
    assert made["headers"]["id"] == made["properties"]["correlation_id"] == submission.id
    return made


def arguments(made: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(made["body"]))[:2]


@pytest.mark.parametrize(
    "first", [1, "%(id)s", 'with "quotes" \\ and \n', {"deep": ["ünï", None, 0.5]}, [], "x" * 5000]
)
def test_arguments_of_jobs_of_one_kind(preparation: Preparation, first: Any) -> None:
    made = [message(preparation, step.s(argument, key=first)) for argument in (first, 2)]
    assert [arguments(one) for one in made] == [[[first], {"key": first}], [[2], {"key": first}]]
    assert made[0]["headers"]["argsrepr"] == repr((first,))[:1024]
    assert made[0]["headers"]["id"] != made[1]["headers"]["id"]
    assert len(preparation._kinds) == 1


def test_names_and_keys_are_each_jobs_own(preparation: Preparation) -> None:
    made = [
        message(preparation, step.s(1), name=f'"{n}" % 2', idempotency_key=f"k{n}", priority="high") for n in range(3)
    ]
    headers = [one["headers"][HEADER] for one in made]
    assert [header["name"] for header in headers] == ['"0" % 2', '"1" % 2', '"2" % 2']
    assert [header["idempotency_key"] for header in headers] == ["k0", "k1", "k2"]
    assert all(header["priority"] == "high" and header["reply_to"] == "cyxwiz.reply.me" for header in headers)
    assert len(preparation._kinds) == 1
    with pytest.raises(InvalidJob, match=r"^name: "):
        preparation.prepare(step.s(1), {"name": "a\x00b", "idempotency_key": "k", "priority": "high"})
    assert "name" not in message(preparation, step.s(1), priority="high")["headers"][HEADER]


def test_a_training_is_named_by_itself_or_by_the_call(preparation: Preparation) -> None:
    made = [message(preparation, DIGITS), message(preparation, DIGITS, name="mine")]
    assert [one["headers"][HEADER]["name"] for one in made] == ["100 % sure", "mine"]
    assert TrainingJob(**arguments(made[0])[0][0]) == DIGITS


def test_options_that_are_changed_in_place_make_another_kind(preparation: Preparation) -> None:
    resources: dict[str, Any] = {"labels": {"rack": "a"}}
    signature = step.s(1)
    message(preparation, signature, resources=resources)
    resources["labels"]["rack"] = "b"
    signature.options["headers"]["mine"] = "x"
    headers = message(preparation, signature, resources=resources)["headers"]
    assert headers[HEADER]["resources"] == {"labels": {"rack": "b"}}
    assert headers["mine"] == "x"


def test_many_kinds_in_turns(preparation: Preparation) -> None:
    for _ in range(2):
        for cpus in range(20):
            header = message(preparation, step.s(1), resources=Resources(cpus=cpus))["headers"][HEADER]
            assert header.get("resources", {}).get("cpus", 0) == cpus


def test_what_counts_from_now_is_counted_for_each_job(preparation: Preparation) -> None:
    etas = [message(preparation, step.s(1).set(countdown=60))["headers"]["eta"] for _ in range(2)]
    assert etas[0] < etas[1]


def test_what_a_task_says_of_all_its_calls_is_part_of_each_message(preparation: Preparation) -> None:
    assert preparation.prepare(brief.s(), {}).ignore_result
    headers = message(preparation, brief.s())["headers"]
    assert headers["ignore_result"]
    assert headers["expires"] is not None
    assert not message(preparation, brief.s().set(ignore_result=False))["headers"]["ignore_result"]


def test_stamps_of_a_signature_are_in_its_message(preparation: Preparation) -> None:
    stamped = step.s(1)
    stamped.stamp(run="seven")
    headers = message(preparation, stamped)["headers"]
    assert (headers["stamped_headers"], headers["stamps"]) == (["run"], {"run": "seven"})
    assert message(preparation, step.s(1))["headers"]["stamps"] == {}


@pytest.mark.parametrize("field", ["model_options", "dataset_options"])
def test_an_option_of_a_training_that_json_cannot_carry_is_named(preparation: Preparation, field: str) -> None:
    training = TrainingJob(model="mlp", dataset="digits", **{field: {"size": object()}})
    with pytest.raises(InvalidJob, match=f"^{field}: JSON cannot carry it: .* Pass numbers, texts"):
        preparation.prepare(training, {})
