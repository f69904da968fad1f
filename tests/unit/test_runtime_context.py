"""What `ctx.report` accepts and sends, and what asking to stop does."""

from __future__ import annotations

import json
import multiprocessing
import queue
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cyxwiz_tasks.runtime import entry
from cyxwiz_tasks.runtime.context import FolderUnusable, JobContext, LocalContext, progress_frame
from cyxwiz_tasks.runtime.exception_cause import cause_of
from cyxwiz_tasks.runtime.pipe import Pipe
from cyxwiz_tasks.states import Cause


@pytest.mark.parametrize(
    ("code", "status", "text"), [("no such data set", 1, "no such data set\n"), (3, 3, ""), (None, 0, "")]
)
def test_what_a_job_exits_with_is_its_status_or_in_its_log(monkeypatch, capsys, code, status, text):
    """As Python itself does with `sys.exit("...")`."""

    def run_job(*_: object) -> None:
        sys.exit(code)

    monkeypatch.setattr(entry, "_context", lambda pipe, job: None)
    monkeypatch.setattr(entry, "_load", lambda job: (SimpleNamespace(run_job=run_job), [], {}))
    frame = entry._run(None, {"lease_until": None}, queue.SimpleQueue())
    assert frame == {"kind": "exited", "code": status}
    assert capsys.readouterr().err == text


@pytest.fixture
def there(tmp_path: Path) -> Iterator[tuple[JobContext, Pipe]]:
    ours, theirs = socket.socketpair()
    pipe, agent = Pipe(ours.detach()), Pipe(theirs.detach())
    here = Path()
    yield (
        JobContext(
            pipe,
            job_id="j",
            attempt=2,
            device="cpu",
            threads=1,
            artifacts=tmp_path / "artifacts",
            checkpoints=tmp_path,
            token=3,
            cache=here,
            data_roots=(),
        ),
        agent,
    )
    pipe.close()
    agent.close()


class Scalar:
    """As numpy and torch make them."""

    size = 1

    def item(self) -> float:
        return 0.5


def test_a_report_is_one_frame_with_its_time(there):
    context, agent = there
    context.report(epoch=3, loss=0.25, note="hällo", done=False, best=None)
    sent = agent.receive()
    assert sent["kind"] == "progress"
    assert sent["at"] > 1e9
    assert sent["values"] == {"epoch": 3, "loss": 0.25, "note": "hällo", "done": False, "best": None}


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Scalar(), 0.5),
        ([1, float("inf")], [1, "inf"]),
        ({"a": Scalar()}, {"a": 0.5}),
        ((1, 2), [1, 2]),
        ("nul \0", "nul \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_values_that_json_or_the_record_cannot_hold_are_sent_as_something_they_can(value, sent):
    assert json.loads(progress_frame({"x": value}))["values"] == {"x": sent}


def test_what_cannot_be_sent_is_an_error_that_names_it():
    with pytest.raises(TypeError, match="model is a object"):
        progress_frame({"model": object()})
    with pytest.raises(ValueError, match=r"ctx\.artifacts"):
        progress_frame({"text": "x" * 40_000})


def test_a_forked_child_cannot_report_into_its_parents_pipe(there):
    context, _ = there

    def report() -> None:
        try:
            context.report(x=1)
        except RuntimeError:
            raise SystemExit(7) from None

    child = multiprocessing.get_context("fork").Process(target=report)
    child.start()
    child.join(10)
    assert child.exitcode == 7


def test_asking_whether_to_stop_is_remembered(there):
    context, _ = there
    assert not context.heeds_stop
    assert not context.should_stop
    assert context.heeds_stop
    context.ask_to_stop()
    assert context.should_stop


def test_the_nodes_folders_are_made_when_they_are_wanted_and_another_node_may_do_better_where_that_fails(
    there, tmp_path
):
    context, _ = there
    assert context.artifacts.is_dir()
    assert context.cache.is_dir()
    context._artifacts = tmp_path / "a file" / "attempt-1"
    context._artifacts.parent.write_text("in the way")
    with pytest.raises(FolderUnusable, match="a file") as caught:
        _ = context.artifacts
    assert cause_of(caught.value) == Cause.HARDWARE


def test_a_local_context_keeps_reports_as_a_node_would_send_them(capsys):
    seen = []
    context = LocalContext(on_report=seen.append)
    context.report(step=1, loss=float("nan"))
    context.log("a line")
    assert seen == context.reports == [{"step": 1, "loss": "nan"}]
    assert capsys.readouterr().out == "a line\n"
    assert context.artifacts.is_dir()


def test_a_checkpoint_is_saved_below_the_attempts_token_told_to_the_agent_and_restored(there, tmp_path, capsys):
    context, agent = there
    assert context.restore() is None
    assert context.checkpoint(step=40, rate=0.5) is True
    told = agent.receive()
    assert (told["kind"], told["step"], told["folder"]) == ("checkpoint", 40, str(tmp_path / "3" / "000001"))
    assert context.restore() == {"step": 40, "rate": 0.5}
    assert "resumes from checkpoint 3/1, step 40" in capsys.readouterr().out


def test_a_checkpoint_that_cannot_be_written_is_told_everywhere_and_is_no_error(there, tmp_path, capsys):
    context, agent = there
    (tmp_path / "3").write_text("a file in the way")
    assert context.checkpoint(step=7, rate=0.5) is False
    assert "checkpoint of step 7 not saved" in capsys.readouterr().out
    report, told = agent.receive(), agent.receive()
    assert (report["kind"], report["values"]["step"]) == ("progress", 7)
    assert report["values"]["checkpoint_error"] == told["error"]


def test_a_forked_child_cannot_save_a_checkpoint(there):
    context, _ = there
    context._pid += 1
    with pytest.raises(RuntimeError, match=r"ctx\.checkpoint works in the job's own process"):
        context.checkpoint(step=1)
