"""`@job` and `JobTask`: what a decorated function is, and what its messages carry."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain

from cyxwiz_tasks import JobTask, Resources, install, job
from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.job_header import fold, parse_priority, parse_seconds
from cyxwiz_tasks.protocol.headers import JobHeader
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, HEADER, INBOX
from cyxwiz_tasks.runtime.context import LocalContext

HERE = str(Path(__file__).resolve().parents[2])


@job
def plain(a: int, b: int = 2) -> int:
    return a + b


@job(resources={"gpu_memory": "24GB..", "gpus": 2}, priority="high", time_limit="4h", owner="ann", project="vision")
def demanding(ctx: Any, rate: float) -> float:
    return rate


@job(bind=True, max_retries=3)
def bound(self: Any, ctx: Any, number: int) -> str:
    return f"{self.name} {number} {type(ctx).__name__}"


def header_of(signature: Any) -> JobHeader:
    assert json.loads(json.dumps(signature))["options"]["queue"] == INBOX
    return JobHeader.model_validate(signature["options"]["headers"][HEADER])


def test_a_job_is_a_celery_task_that_knows_where_its_function_is() -> None:
    assert isinstance(plain, JobTask)
    assert plain.name == f"{__name__}.plain"
    assert plain.entry is not None
    assert (plain.entry.text, plain.entry.path) == (f"{__name__}:plain", HERE)


def test_every_signature_carries_all_that_the_scheduler_must_know() -> None:
    header = header_of(demanding.s(1.0))
    assert header.resources == Resources(gpus=2, gpu_memory="24GB..")
    assert (header.priority, header.time_limit_seconds) == ("high", 4 * 3600)
    assert (header.owner, header.project) == ("ann", "vision")
    assert (header.entry, header.path) == (f"{__name__}:demanding", HERE)
    links = chain(plain.si(1), demanding.si(1.0)).tasks
    assert [header_of(link).priority for link in links] == ["normal", "high"]
    assert header_of(plain.s(1)).owner


def test_options_of_one_call_change_the_header_and_nothing_else() -> None:
    call = demanding.options(priority="low", time_limit=60, idempotency_key="k", resources=Resources(cpus=1))
    header = header_of(call.s(1.0))
    assert (header.priority, header.time_limit_seconds, header.idempotency_key) == ("low", 60, "k")
    assert header.resources == Resources(cpus=1)
    assert header.owner == "ann"
    assert header_of(demanding.s(1.0)).priority == "high"
    assert set(call.s(1.0)["options"]) == {"headers", "queue"}


def test_options_that_are_set_later_are_folded_by_whoever_sends_the_signature() -> None:
    late = plain.s(1).set(priority="critical", countdown=3)
    folded = fold(dict(late.options))
    assert folded["headers"][HEADER]["priority"] == "critical"
    assert folded["countdown"] == 3
    assert "priority" not in folded


def test_a_retry_keeps_the_header_and_drops_the_placement() -> None:
    headers = plain.s(1)["options"]["headers"] | {ASSIGNMENT_HEADER: {"token": 1}}
    context = type(plain.request)(
        {"id": "x", "delivery_info": {"exchange": "", "routing_key": "node.7", "priority": 0}},
        args=(1,),
        kwargs={},
        headers=headers,
    )
    again = plain.signature_from_request(context, retries=1)
    assert header_of(again).entry == f"{__name__}:plain"
    assert ASSIGNMENT_HEADER not in again["options"]["headers"]
    assert again["options"]["retries"] == 1
    assert header_of(again).priority == "normal"


@pytest.mark.parametrize(
    ("value", "priority"),
    [("critical", "critical"), (0, "critical"), (3, "high"), (6, "normal"), (9, "low"), (5, "high")],
)
def test_priorities_by_name_and_by_celerys_number(value: Any, priority: str) -> None:
    assert parse_priority(value) == priority


@pytest.mark.parametrize("value", ["urgent", 10, -1, True, 1.5])
def test_no_priority(value: Any) -> None:
    with pytest.raises(InvalidJob, match=r"priority: .*low.*normal.*high.*critical"):
        parse_priority(value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("4h", 14400), ("90m", 5400), ("1.5 d", 129600), ("20", 20), (0.5, 0.5), (timedelta(minutes=2), 120)],
)
def test_time_limits(value: Any, seconds: float) -> None:
    assert parse_seconds(value) == seconds


@pytest.mark.parametrize("value", ["4 hours", "", 0, -1, float("nan"), float("inf"), True, "500d", timedelta(0), []])
def test_no_time_limit(value: Any) -> None:
    with pytest.raises(InvalidJob, match=r'time_limit: .*"4h"'):
        parse_seconds(value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resources": {"gpu_memory": "much"}}, r"gpu_memory.*24GB"),
        ({"resources": {"gpuz": 1}}, r"resources.gpuz.*gpus"),
        ({"priority": "urgent"}, "priority"),
        ({"time_limit": "long"}, "time_limit"),
        ({"owner": ""}, "owner"),
        ({"project": "a\nb"}, "project"),
    ],
)
def test_a_mistake_in_an_option_is_told_at_the_decorator(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob, match=words):
        job(**options)(broken)


def broken() -> None:
    pass


def test_functions_that_no_other_process_can_import_are_refused() -> None:
    def inner() -> None:
        pass

    with pytest.raises(InvalidJob, match=r"inner: a function inside a function .*top level"):
        job(inner)
    with pytest.raises(InvalidJob, match=r"a lambda cannot be imported"):
        job(lambda: None)
    typed = "from cyxwiz_tasks import job\n@job\ndef step(): pass"
    done = subprocess.run([sys.executable, "-c", typed], capture_output=True, text=True, check=False)
    assert "InvalidJob: step: a function of an interactive session" in done.stderr


def test_a_direct_call_runs_here_with_a_local_context(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(1) == 3
    assert demanding(0.5) == 0.5
    assert bound(7) == f"{__name__}.bound 7 LocalContext"
    monkeypatch.setattr(plain.app, "_server", "redis://127.0.0.1:1/0")
    assert plain.apply((1,)).get() == 3
    assert demanding.apply((0.25,)).get() == 0.25


def test_a_direct_call_makes_no_folder_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert demanding(0.5) == 0.5
    assert list(tmp_path.iterdir()) == []
    context = LocalContext()
    assert context.artifacts == context.artifacts
    assert list(tmp_path.iterdir()) == [context.artifacts]
    context.artifacts = tmp_path / "mine"
    assert context.artifacts == LocalContext(artifacts=tmp_path / "mine").artifacts == tmp_path / "mine"


def test_a_job_runs_with_the_context_it_is_given() -> None:
    assert demanding.run_job("context", (0.5,), {}) == 0.5
    assert plain.run_job("context", (1,), {"b": 1}) == 2
    assert bound.run_job("context", (), {"number": 1}) == f"{__name__}.bound 1 str"


def test_the_context_does_not_count_among_a_callers_arguments() -> None:
    with pytest.raises(TypeError, match="rate"):
        demanding.__header__()
    demanding.__header__(rate=1.0)
    with pytest.raises(TypeError):
        plain.__header__(1, 2, 3)
    bound.__header__(1)


def test_an_application_of_the_users_own_carries_jobs() -> None:
    own = install(Celery("theirs", broker="redis://127.0.0.1:1/0", set_as_current=False))

    # Not shared: Celery would hand the task, broken as it is, to every application that is made afterwards.
    @own.task(base=JobTask, resources=Resources(gpus=1), priority="high", name="theirs.broken", shared=False)
    def theirs() -> None:
        pass

    with pytest.raises(InvalidJob, match="inside a function"):
        theirs.name  # noqa: B018 - Celery makes the task when it is first used
    options = {"base": JobTask, "priority": "high", "time_limit": "1h", "bind": False, "shared": False}
    made = own.task(resources={"gpus": 1}, **options)(broken)
    header = header_of(made.s())
    assert (header.resources.gpus, header.priority, header.time_limit_seconds) == (1, "high", 3600)
    assert (made.priority, made.time_limit) == (None, None)
    assert own.conf.task_default_queue == "celery"
    assert own.conf.broker_url == own.conf.result_backend == "redis://127.0.0.1:1/0"


def test_environment_variables_of_celery_do_not_overrule_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:2/0")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://127.0.0.1:2/0")
    made = make_app("redis://127.0.0.1:1/0")
    for connection in (made.connection_for_write(), made.connection_for_read()):
        assert connection.as_uri(include_password=True) == "redis://127.0.0.1:1/0"
    assert made.backend.as_uri() == "redis://127.0.0.1:1/0"


def test_a_job_in_a_script_is_found_under_the_name_of_its_file(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from cyxwiz_tasks import job\n"
        "@job\n"
        "def step(ctx, x): return x\n"
        "if __name__ == '__main__':\n"
        "    print(step.name, step.entry.text, step.entry.path, step(5))\n"
        "    import sys; assert sys.modules['train'].step is step\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == ["train.step", "train:step", str(tmp_path), "5"]
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    script.rename(tmp_path / "package" / "train.py")
    done = subprocess.run(
        [sys.executable, "-m", "package.train"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.split() == ["package.train.step", "package.train:step", str(tmp_path), "5"]
