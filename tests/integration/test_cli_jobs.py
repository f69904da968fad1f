"""The `cyxwiz` commands of a user, over a real Redis."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from cyxwiz_tasks import Client, TrainingJob
from cyxwiz_tasks.cli.follow import follow
from cyxwiz_tasks.cli.main import main
from cyxwiz_tasks.cli.node_table import show_nodes
from cyxwiz_tasks.protocol.names import log_key
from cyxwiz_tasks.protocol.queries import Reply
from cyxwiz_tasks.settings import settings
from tests.integration.scheduler_peer import SchedulerPeer

ONE, TWO = "0190aaaa-0000-7000-8000-000000000001", "0190aaaa-0000-7000-8000-000000000002"
ROW: dict[str, Any] = {
    "id": ONE,
    "name": "digits-cnn",
    "task": "cyxwiz.train",
    "state": "failed",
    "cause": "out_of_memory",
    "message": "the GPU ran out of memory",
    "priority": "high",
    "owner": "ann",
    "project": "vision",
    "node": "big",
    "submitted_at": "2026-01-01T10:00:00+00:00",
    "accepted_at": "2026-01-01T10:00:00+00:00",
    "started_at": "2026-01-01T10:00:01+00:00",
    "ended_at": "2026-01-01T10:03:21+00:00",
}
NODE: dict[str, Any] = {
    "id": TWO,
    "name": "big",
    "state": "suspect",
    "slots": 2,
    "assigned": 0,
    "running": 1,
    "seen_seconds_ago": 75.0,
    "capability": {
        "gpus": [{"model": "NVIDIA A100", "memory_bytes": 80 * 2**30}] * 2,
        "cpu_cores": 32,
        "ram_bytes": 128 * 2**30,
        "torch": "2.13.0",
        "labels": {"rack": "a1"},
    },
}

Cyxwiz = Callable[..., Result]


@pytest.fixture
def cyxwiz(broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cyxwiz]:
    """Runs one command against the broker, in an empty folder."""
    monkeypatch.setenv("CYXWIZ_BROKER_URL", broker_url)
    monkeypatch.setenv("CYXWIZ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield lambda *arguments: CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    settings.cache_clear()


@pytest.fixture
def peer(broker_url: str) -> Iterator[SchedulerPeer]:
    with SchedulerPeer(broker_url) as made:
        made.answer = answer
        yield made


def answer(request: dict[str, Any]) -> Reply:
    match request:
        case {"name": "jobs"}:
            return Reply(value=[ROW | {"attempts": 1}, ROW | {"id": TWO, "state": "running", "ended_at": None}])
        case {"name": "job"}:
            scores = {"score": 1.5, "parts": {"reputation": 1.0, "preferred": 0.75}, "next": [["small", 0.9]]}
            attempt = {"number": 1, "state": "failed", "cause": "out_of_memory", "node": "big", "device": "cuda:0"}
            attempt["scores"] = scores
            return Reply(value=ROW | {"attempts": [attempt], "traceback": "Traceback: boom", "resources": {"gpus": 1}})
        case {"name": "nodes"}:
            return Reply(value=[NODE])
        case {"kind": "drain" | "undrain"}:
            return Reply(value=NODE | {"cordon_seconds_left": request.get("deadline_seconds")})
        case {"kind": "why"}:
            return Reply(value={"text": "No node here has a GPU.", "facts": {"nodes": 1}})
        case _:
            return Reply(value={"state": "REVOKED"})


def test_submit_a_training(cyxwiz: Cyxwiz, peer: SchedulerPeer) -> None:
    done = cyxwiz(
        *["submit", "--model", "cnn", "--dataset", "digits", "--epochs", "15", "--learning-rate", "4e-3", "--compile"],
        *["--model-options", '{"widths": [8]}', "--gpus", "2", "--gpu-memory", "24GB..", "--label", "rack=a1"],
        *["--priority", "high", "--time-limit", "4h", "--project", "vision", "--name", "first"],
    )
    assert done.exit_code == 0, done.output
    assert done.output.strip() == peer.messages[0]["headers"]["id"]
    header = peer.header()
    assert header["resources"] == {"gpus": 2, "gpu_memory": "24GB..", "labels": {"rack": "a1"}}
    assert (header["priority"], header["time_limit_seconds"], header["name"]) == ("high", 14400, "first")
    done = cyxwiz(
        *["submit", "--model", "cnn", "--dataset", "digits", "--gpus", "1", "--placement", "pack"],
        *["--prefer", "3:gpu_model=H100*", "--prefer", "region=eu-*"],
    )
    assert peer.header()["resources"] == {
        "gpus": 1,
        "placement": "pack",
        "prefer": {"gpu_model=H100*": 3.0, "region=eu-*": 1.0},
    }
    done = cyxwiz("submit", "--model", "cnn", "--dataset", "digits", "--json")
    assert json.loads(done.stdout) == {"id": peer.messages[-1]["headers"]["id"], "state": "ACCEPTED"}


@pytest.mark.parametrize(
    ("options", "seconds", "said"),
    [
        ([], 0.0, "1 job is asked now to go on elsewhere"),
        (["--deadline", "30m"], 1800.0, "1 job is asked in 30 min to go on elsewhere"),
        (["--deadline", "never"], None, "1 job is left to end there"),
    ],
)
def test_drain(cyxwiz: Cyxwiz, peer: SchedulerPeer, options: list[str], seconds: float | None, said: str) -> None:
    done = cyxwiz("drain", "big", *options, "--reason", "new disks")
    assert said in done.output
    [request] = peer.requests
    assert (request["kind"], request["node"], request["deadline_seconds"]) == ("drain", "big", seconds)
    assert request["reason"] == "new disks"
    assert json.loads(cyxwiz("undrain", "big", "--json").output)["name"] == "big"
    assert peer.requests[1]["kind"] == "undrain"
    assert cyxwiz("drain", "big", "--deadline", "soon").exit_code == 2


def test_a_node_outside_its_hours_says_when_it_opens() -> None:
    today = datetime.now(UTC)
    tomorrow = (today + timedelta(days=1)).strftime("%a")
    for hours, shown in ((f"{tomorrow} 12:00-13:00", f"up, opens {tomorrow} 12:00"), (f"{today:%a}-{tomorrow}", "up ")):
        capability = NODE["capability"] | {"hours": hours, "timezone": "UTC"}
        console = Console(width=200)
        with console.capture() as captured:
            show_nodes([NODE | {"state": "up", "capability": capability}], console)
        assert shown in captured.get()
        assert "opens" not in captured.get() or "opens" in shown


def test_whose_jobs_nodes_take_is_shown_where_some_are_choosy() -> None:
    console = Console(width=200)
    choosy = NODE | {"capability": NODE["capability"] | {"accept": 'owner == "ann"'}}
    for rows, shown in (([NODE, choosy], True), ([NODE], False)):
        with console.capture() as captured:
            show_nodes(rows, console)
        assert ("TAKES" in captured.get()) == ('owner == "ann"' in captured.get()) == shown


def test_a_drained_node_is_shown_as_one() -> None:
    console = Console(width=200)
    with console.capture() as shown:
        show_nodes([NODE | {"cordon": "draining", "cordon_seconds_left": 90.0}], console)
        show_nodes([NODE | {"cordon": "draining", "running": 0, "cordon_seconds_left": 90.0}], console)
    assert "suspect, draining 1 min 30 s" in shown.get()
    assert "suspect, drained " in shown.get()


@pytest.mark.parametrize("form", ["json", "toml"])
def test_submit_a_file_and_overrule_it(cyxwiz: Cyxwiz, peer: SchedulerPeer, tmp_path: Path, form: str) -> None:
    spec = tmp_path / f"spec.{form}"
    if form == "json":
        fields = {"model": "mlp", "dataset": "digits", "epochs": 3, "priority": "low"}
        spec.write_text(json.dumps(fields | {"resources": {"cpus": 2, "ram": "4GB"}}))
    else:
        spec.write_text(
            'model = "mlp"\ndataset = "digits"\nepochs = 3\npriority = "low"\n[resources]\ncpus = 2\nram = "4GB"\n'
        )
    done = cyxwiz("submit", "--spec", str(spec), "--ram", "8GB", "--epochs", "5")
    assert done.exit_code == 0, done.output
    assert peer.header()["resources"] == {"cpus": 2, "ram": "8GB"}
    assert peer.header()["priority"] == "low"
    assert '"epochs": 5' in peer.messages[0]["headers"]["argsrepr"].replace("'", '"')


def test_submit_a_function(cyxwiz: Cyxwiz, peer: SchedulerPeer, tmp_path: Path) -> None:
    (tmp_path / "tune_cli_test.py").write_text(
        "from cyxwiz_tasks import job\n@job(resources={'gpus': 1})\ndef finetune(ctx, rate, steps=1): pass\nplain = 1\n"
    )
    done = cyxwiz("submit", "--task", "tune_cli_test:finetune", "--args", "[0.1]", "--kwargs", '{"steps": 2}')
    assert done.exit_code == 0, done.output
    header = peer.header()
    assert (header["entry"], header["path"]) == ("tune_cli_test:finetune", str(tmp_path))
    assert header["resources"] == {"gpus": 1}
    for arguments, words in [
        (["--task", "tune_cli_test:plain"], "is no job"),
        (["--task", "tune_cli_test"], "names no function"),
        (["--task", "no_such_module_here:f"], "No module named"),
        (["--task", "tune_cli_test:finetune", "--kwargs", "{rate"], "is no JSON"),
        (["--task", "tune_cli_test:finetune", "--epochs", "3"], "epochs: is a field of trainings"),
    ]:
        failed = cyxwiz("submit", *arguments)
        assert (failed.exit_code, words in failed.stderr) == (2, True), failed.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "digits"], "model: is missing"),
        (["--model", "cmn", "--dataset", "digits"], "did you mean 'cnn'?"),
        (["--model", "cnn", "--dataset", "digits", "--epochs", "many"], "epochs: "),
        (["--model", "cnn", "--dataset", "digits", "--gpu-memory", "much"], "resources.gpu_memory: "),
        (["--model", "cnn", "--dataset", "digits", "--gpus", "x"], "resources.gpus: "),
        (["--model", "cnn", "--dataset", "digits", "--priority", "x"], "priority: "),
        (["--model", "cnn", "--dataset", "digits", "--label", "rack"], "labels: "),
        (["--model", "cnn", "--dataset", "digits", "--id", ""], "id: "),
    ],
)
def test_a_mistake_is_one_line_and_status_2(cyxwiz: Cyxwiz, arguments: list[str], words: str) -> None:
    done = cyxwiz("submit", *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    as_json = json.loads(cyxwiz("submit", *arguments, "--json").stderr)
    assert as_json["error"] == "InvalidJob"
    assert words in as_json["message"]


def test_without_a_scheduler_or_a_stack_the_status_is_3(cyxwiz: Cyxwiz, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYXWIZ_SUBMIT_TIMEOUT_SECONDS", "0.1")
    settings.cache_clear()
    done = cyxwiz("jobs")
    assert (done.exit_code, "no scheduler answered" in done.stderr) == (3, True)
    monkeypatch.delenv("CYXWIZ_BROKER_URL")
    settings.cache_clear()
    done = cyxwiz("nodes", "--json")
    assert (done.exit_code, json.loads(done.stderr)["error"]) == (3, "NoStack")


def test_lists_and_pages(cyxwiz: Cyxwiz, peer: SchedulerPeer) -> None:
    listed = cyxwiz("jobs", "--state", "failed", "--state", "running", "--owner", "ann", "-n", "5").output
    assert peer.requests[0]["arguments"] == {"states": ["failed", "running"], "owner": "ann", "limit": 5}
    assert "failed (out_of_memory)" in listed
    assert "3 min 20 s" in listed
    rows = json.loads(cyxwiz("jobs", "--json").output)
    assert [row["celery_state"] for row in rows] == ["FAILURE", "STARTED"]
    page = cyxwiz("job", ONE).output
    for text in (
        "digits-cnn",
        "the GPU ran out of memory",
        "gpus 1",
        "ann / vision",
        "cuda:0",
        "Traceback: boom",
        "preferred 0.75",
    ):
        assert text in page
    assert json.loads(cyxwiz("job", ONE, "--json").output)["id"] == ONE
    nodes = cyxwiz("nodes").output
    for text in ("suspect", "2x NVIDIA A100 80GB", "128GB", "1/2", "rack=a1", "1 min 15 s ago"):
        assert text in nodes


def test_an_id_may_be_shortened_if_no_other_job_has_it(cyxwiz: Cyxwiz, peer: SchedulerPeer) -> None:
    assert cyxwiz("why", "002").output == "No node here has a GPU.\n"
    assert peer.requests[-1]["job"] == TWO
    several = cyxwiz("why", "0190")
    assert (several.exit_code, "fits 2 jobs" in several.stderr) == (2, True)
    none = cyxwiz("cancel", "fff")
    assert (none.exit_code, "no job has an id" in none.stderr) == (2, True)


def test_cancel_and_plan(cyxwiz: Cyxwiz, peer: SchedulerPeer) -> None:
    done = cyxwiz("cancel", ONE, TWO, "--reason", "not needed")
    assert done.output.split() == [ONE, "cancelled", TWO, "cancelled"]
    assert [request["reason"] for request in peer.requests] == ["not needed"] * 2
    assert json.loads(cyxwiz("plan", "--gpus", "9", "--json").output)["facts"]["nodes"] == 1
    assert peer.requests[-1]["resources"]["gpus"] == 9


def test_release(cyxwiz: Cyxwiz, peer: SchedulerPeer) -> None:
    assert cyxwiz("release", ONE, TWO).output.split() == [ONE, "released", TWO, "released"]
    assert [(request["kind"], request["job"]) for request in peer.requests] == [("release", ONE), ("release", TWO)]
    assert json.loads(cyxwiz("release", ONE, "--json").output) == {"released": [ONE]}


def test_logs(cyxwiz: Cyxwiz, peer: SchedulerPeer) -> None:
    peer.connection.xadd(log_key(ONE), {"text": "one\ntwo\n"})
    peer.connection.xadd(log_key(ONE), {"end": "1"})
    assert cyxwiz("logs", ONE).output == cyxwiz("logs", "-f", ONE).output == "one\ntwo\n"
    silent = cyxwiz("logs", TWO)
    assert (silent.exit_code, silent.stdout) == (0, "")
    assert "has no output" in silent.stderr


def test_logs_of_no_job_are_not_waited_for(cyxwiz: Cyxwiz, peer: SchedulerPeer) -> None:
    peer.answer = lambda _: Reply(error_type="NotFound", error="there is no such job")
    done = cyxwiz("logs", "-f", ONE)
    assert (done.exit_code, done.stderr) == (2, "error: there is no such job\n")


def run_a_training(peer: SchedulerPeer, job_id: str) -> None:
    peer.tell(job_id, "state", state="ASSIGNED", node="big", message="best score")
    for epoch in (1, 2):
        values = {"epoch": epoch, "epochs": 2, "step": epoch * 10, "total": 20, "loss": 1 / epoch, "accuracy": 0.9}
        peer.tell(job_id, "progress", values=values | {"samples_per_second": 1234.5, "eta_seconds": 3, "val_loss": 1.0})
    result = {"metrics": {"test_accuracy": 0.98}, "artifacts": {"model": "/a/model.safetensors"}, "stopped": None}
    peer.backend.mark_as_done(job_id, result)
    peer.tell(job_id, "end", state="SUCCESS")


@pytest.mark.parametrize("terminal", [True, False])
def test_follow_shows_progress_and_the_result(
    broker_url: str, peer: SchedulerPeer, terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(broker_url) as client:
        handle = client.submit(TrainingJob(model="cnn", dataset="digits"))
        run_a_training(peer, handle.id)
        assert follow(handle, Console(force_terminal=terminal, width=160, no_color=True)) == 0
    shown = capsys.readouterr().out
    for text in ("ASSIGNED on big: best score", "epoch 2/2", "1,234 samples/s", "test_accuracy  0.98"):
        assert text in shown
    assert "/a/model.safetensors" in shown


def test_follow_shows_why_a_job_failed(
    broker_url: str, peer: SchedulerPeer, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(broker_url) as client:
        handle = client.submit(TrainingJob(model="cnn", dataset="digits"))
        peer.backend.mark_as_failure(handle.id, ValueError("bad rate"), traceback='File "train.py", line 7')
        peer.tell(handle.id, "end", state="FAILURE", message="ValueError: bad rate")
        assert follow(handle, Console(width=160)) == 1
    shown = capsys.readouterr().out
    assert "job failed: ValueError: bad rate" in shown
    assert "train.py" in shown


def test_submit_and_follow_as_json(cyxwiz: Cyxwiz, peer: SchedulerPeer) -> None:
    accept = peer.acknowledge

    def run_at_once(id: str) -> Any:
        run_a_training(peer, id)
        return accept(id)

    peer.acknowledge = run_at_once
    done = cyxwiz("submit", "--model", "cnn", "--dataset", "digits", "--follow", "--json", "--id", ONE)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["metrics"] == {"test_accuracy": 0.98}
