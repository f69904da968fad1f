"""Small parts of a node that need no server: environment, log, reports, folder, stops, exceptions."""

from __future__ import annotations

import datetime
import functools
import json
import os
import pickle
import socket
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from kombu.asynchronous.hub import Hub

from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.headers import Assignment
from cyxwiz_tasks.protocol.names import REPORTS
from cyxwiz_tasks.protocol.reports import REPORT, Process, Running
from cyxwiz_tasks.protocol.updates import Update
from cyxwiz_tasks.runtime.pipe import Pipe, encode_value
from cyxwiz_tasks.settings import Settings, settings
from workers.attempt_reports import AttemptReports, progress_text
from workers.attempts import Attempts, StopRequest
from workers.cli import worker
from workers.consumer import NodeConsumer
from workers.consumer import _loop as consumer_loop
from workers.failure import stand_in
from workers.hung import Pace
from workers.job_environment import job_environment
from workers.joblog import JobLog
from workers.node_folder import FolderTaken, NodeFolder
from workers.outcomes import completed
from workers.reporter import Reporter
from workers.storable import storable_json, storable_text
from workers.supervise import _end, _take_frames

ASSIGNMENT = Assignment(job="j", attempt=1, token=7, node="n", incarnation="i", epoch=1)


def test_a_jobs_environment_holds_what_is_listed_and_no_credentials():
    kept = {"PATH": "/bin", "LC_ALL": "C", "CUDA_HOME": "/cuda", "PYTHONPATH": "/x", "https_proxy": "http://proxy:1"}
    dropped = {
        "CYXWIZ_BROKER_URL": "redis://h",
        "AWS_SECRET_ACCESS_KEY": "x",
        "HF_TOKEN": "x",
        "PYTHON_API_KEY": "x",
        "http_proxy": "http://user:password@proxy",
        "SOMETHING": "x",
        "LD_PRELOAD": "/evil.so",
    }
    made = job_environment(kept | dropped, threads=3)
    assert {name: made[name] for name in kept} == kept
    assert not set(dropped) & set(made)
    assert (made["OMP_WAIT_POLICY"], made["OMP_NUM_THREADS"]) == ("PASSIVE", "3")


@pytest.mark.parametrize(("given", "meant"), [("runs", "runs"), ("~/runs", "me/runs")])
def test_a_home_is_one_place_wherever_a_job_works(given, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("CYXWIZ_HOME", given)
    assert Settings().home == tmp_path / meant


def test_a_log_beyond_its_limit_is_cut_in_the_middle_in_file_and_stream(tmp_path):
    published: list[str] = []
    log = JobLog(tmp_path / "log", 100, published.append)
    for number in range(100):
        log.write(f"line {number}\n".encode())
    assert log.last_lines().splitlines()[-1] == "line 99"
    log.close()
    text = (tmp_path / "log").read_text()
    assert text == "".join(published)
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 98\nline 99\n")
    assert "bytes of output are cut here" in text
    assert len(text) < 200


def test_a_character_that_comes_in_two_pieces_is_one(tmp_path):
    published: list[str] = []
    log = JobLog(tmp_path / "log", 1000, published.append)
    log.write("ä".encode()[:1])
    log.write("ä".encode()[1:] + b"\xff\n")
    log.close()
    assert "".join(published) == "ä\N{REPLACEMENT CHARACTER}\n"
    assert (tmp_path / "log").read_bytes() == "ä".encode() + b"\xff\n"


def make_reports(states: list | None = None) -> AttemptReports:
    return AttemptReports(
        ASSIGNMENT,
        "lab",
        ttl_seconds=60,
        wake=lambda: None,
        state_commands=lambda state, meta: [("STATE", state, meta)],
        show=lambda text: None,
    )


def test_states_are_coalesced_and_the_last_is_never_dropped():
    reports = make_reports()
    now = time.monotonic()
    written = []
    for step in range(100):
        reports.progress(1.0, {"step": step})
        written += [command[2] for command in reports.take(now + step / 1000).commands if command[0] == "STATE"]
    assert len(written) <= 2
    assert reports.due() is not None
    reports.end()
    last = reports.take(now + 0.1)
    assert last.last
    assert [command[2] for command in last.commands if command[0] == "STATE"] == [{"step": 99}]


def test_what_is_written_is_what_the_protocol_says():
    reports = make_reports()
    reports.progress(12.5, {"step": 1, "loss": "nan"})
    reports.output("text")
    reports.end()
    commands = reports.take(0.0).commands
    [update] = [command[-1] for command in commands if command[0] == "XADD" and command[-2] == "update"]
    assert Update.model_validate_json(update).values == {"step": 1, "loss": "nan"}
    [metrics] = [command[2] for command in commands if command[:2] == ("LPUSH", REPORTS)]
    assert REPORT.validate_json(metrics).rows == ({"at": 12.5, "step": 1, "loss": "nan"},)
    assert ("XADD", "cyxwiz.log.j", "*", "text", "text") in commands


@pytest.mark.parametrize(("characters", "entries"), [(1, 20_000), (30_000, 556)])
def test_of_long_reports_redis_keeps_fewer(characters, entries):
    reports = make_reports()
    reports.progress(1.0, {"of each layer": "x" * characters})
    [command] = [command for command in reports.take(0.0).commands if command[0] == "XADD"]
    assert command[2:5] == ("MAXLEN", "~", entries)
    assert entries * len(command[-1]) <= 16 * 2**20


def test_one_long_report_pushes_no_short_ones_out():
    reports = make_reports()
    for step in range(1000):
        reports.progress(1.0, {"step": step})
    reports.progress(1.0, {"of each layer": "x" * 30_000})
    [*_, last] = [command for command in reports.take(0.0).commands if command[0] == "XADD"]
    assert len(last[-1]) > 30_000
    assert last[2:5] == ("MAXLEN", "~", 20_000)
    for _ in range(1500):
        reports.progress(1.0, {"of each layer": "x" * 30_000})
    [*_, last] = [command for command in reports.take(0.0).commands if command[0] == "XADD"]
    assert last[4] < 600


def test_a_flood_is_thinned_out_and_keeps_its_newest_and_its_shape():
    reports = make_reports()
    for step in range(10_000):
        reports.progress(float(step), {"step": step})
    updates = [json.loads(command[-1]) for command in reports.take(0.0).commands if command[0] == "XADD"]
    steps = [update["values"]["step"] for update in updates]
    assert len(steps) <= 2_001
    assert steps == sorted(steps)
    assert steps[-1] == 9_999
    assert steps[0] < 1_000


def test_output_that_nobody_takes_is_bounded():
    reports = make_reports()
    for _ in range(100):
        reports.output("x" * 100_000)
    text = "".join(command[-1] for command in reports.take(0.0).commands if command[0] == "XADD")
    assert len(text) < 5 * 2**20
    assert "output is missing here" in text


class TakesAll:
    """Redis, as far as the reporter needs it."""

    def __init__(self) -> None:
        self.written: list[tuple] = []

    def pipeline(self, transaction: bool) -> SimpleNamespace:
        commands: list[tuple] = []

        def execute(raise_on_error: bool) -> list[bytes]:
            self.written += commands
            return [b"OK"] * len(commands)

        return SimpleNamespace(execute_command=lambda *command: commands.append(command), execute=execute)


@pytest.mark.parametrize("unfit", [["no", "object"], {"deep": functools.reduce(lambda inner, _: [inner], range(5000))}])
def test_values_that_cannot_be_written_cost_nothing_but_themselves(unfit):
    """Past `ctx.report`, or nested deeper than Python's encoder goes: without its reporter no job of the node ends."""
    server = TakesAll()
    reporter = Reporter(server)
    reporter.start()
    reports = AttemptReports(
        ASSIGNMENT,
        "lab",
        ttl_seconds=60,
        wake=reporter.wake,
        state_commands=lambda state, meta: [("STATE", state, json.dumps(meta))],
        show=lambda text: None,
    )
    reporter.watch(reports)
    reports.started(1, "cpu")
    reports.progress(1.0, unfit)
    gives_up_at = time.monotonic() + 5
    assert reporter.finish(reports, lambda: time.monotonic() < gives_up_at)
    reporter.stop()
    assert [command[:2] for command in server.written if command[0] == "LPUSH"] == [("LPUSH", REPORTS)]


def test_the_line_for_flower():
    values = {"epoch": 3, "epochs": 15, "step": 5, "steps": 9, "loss": 0.123456, "accuracy": 0.98, "eta": None}
    assert progress_text(values) == "epoch 3/15 step 5/9 loss 0.1235 acc 0.98"


def test_a_node_folder_is_one_workers_own_and_keeps_its_id(tmp_path):
    folder = NodeFolder(tmp_path, "a")
    with pytest.raises(FolderTaken, match="--name"):
        NodeFolder(tmp_path, "a")
    other = NodeFolder(tmp_path, "b")
    assert other.id != folder.id
    other.close()
    folder.close()
    again = NodeFolder(tmp_path, "a")
    assert again.id == folder.id
    again.close()
    with pytest.raises(InvalidSettings, match="--name"):
        NodeFolder(tmp_path, "../a")


def test_old_attempts_are_forgotten(tmp_path):
    folder = NodeFolder(tmp_path, "a")
    made = folder.attempt_path(5)
    made.mkdir()
    assert folder.forget_attempts(older_than_seconds=60) == 0
    assert folder.forget_attempts(older_than_seconds=-1, keep=[5]) == 0
    assert folder.forget_attempts(older_than_seconds=-1) == 1
    assert not made.exists()
    folder.close()


def test_a_stop_reaches_its_attempt_before_and_after_it_begins():
    attempts = Attempts()
    early, late = StopRequest(), StopRequest()
    attempts.stop(Stop(job="j", token=1))
    attempts.enter("j", 1, early)
    assert early.asked is not None
    attempts.enter("k", 2, late)
    attempts.preempt_all(1.0)
    assert late.asked.outcome == "preempted"
    attempts.stop(Stop(job="k", token=2))
    assert late.asked.outcome == "cancelled"
    assert attempts.tokens() == (1, 2)
    attempts.leave(1)
    late.close()
    late.ask(Stop(job="k", token=2))


def test_an_attempt_begins_once_however_often_its_message_comes():
    attempts = Attempts()
    assert attempts.enter("j", 1, StopRequest())
    assert not attempts.enter("j", 1, StopRequest())
    attempts.leave(1)
    assert not attempts.enter("j", 1, StopRequest())
    assert attempts.enter("j", 2, StopRequest())
    assert attempts.tokens() == (2,)


def test_a_node_knows_how_old_the_newest_checkpoint_of_a_running_attempt_is(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("workers.attempts.time.monotonic", lambda: now[0])
    attempts = Attempts()
    for token in (1, 2, 3):
        attempts.enter("j", token, StopRequest())
    attempts.checkpointed(1)
    attempts.checkpointed(2)
    now[0] = 112.34
    attempts.checkpointed(2)
    now[0] = 113.34
    assert attempts.checkpoint_age_seconds() == {1: 13.3, 2: 1.0}
    attempts.leave(1)
    attempts.checkpointed(1)
    assert attempts.checkpoint_age_seconds() == {2: 1.0}, "one that has ended tells nothing"


def test_a_node_knows_which_running_attempts_have_begun():
    attempts, process = Attempts(), Process(pid=4711, device="cuda:0")
    for token in (1, 2):
        attempts.enter("j", token, StopRequest())
    attempts.started(2, process)
    attempts.started(3, process)
    assert attempts.tokens() == (1, 2)
    assert attempts.processes() == {2: process}, "a message that waits for its process has not begun"
    attempts.leave(2)
    assert attempts.processes() == {}


def test_a_checkpoint_that_could_not_be_written_is_none():
    agents, jobs = (Pipe(end.detach()) for end in socket.socketpair())
    attempts = Attempts()
    attempts.enter("j", ASSIGNMENT.token, StopRequest())
    attempt = SimpleNamespace(
        process=SimpleNamespace(pipe=agents),
        node=SimpleNamespace(attempts=attempts),
        assignment=ASSIGNMENT,
        artifacts=SimpleNamespace(checkpoint=lambda frame: None),
    )
    clock = SimpleNamespace(pace=Pace(floor_seconds=1, factor=1))
    jobs.send({"kind": "checkpoint", "step": 1, "error": "No space left on device"})
    assert _take_frames(attempt, clock)
    assert attempts.checkpoint_age_seconds() == {}
    jobs.send({"kind": "checkpoint", "step": 1, "folder": "7/000001", "seconds": 0.1})
    assert _take_frames(attempt, clock)
    assert attempts.checkpoint_age_seconds().keys() == {ASSIGNMENT.token}
    for pipe in (agents, jobs):
        pipe.close()


def test_an_end_does_not_wait_for_a_process_that_hangs_in_the_kernel_with_the_jobs_pipe():
    """A data loader that was forked and hangs on a dead disk: nobody can close its copy of the socket."""
    agents, jobs = (Pipe(end.detach()) for end in socket.socketpair())
    log_read, log_write = os.pipe()
    heard: list[dict] = []
    process = SimpleNamespace(pipe=agents, log_fd=log_read, kernel_ran_out_of_memory=lambda: False)
    attempt = SimpleNamespace(
        process=process,
        undead=[4711],
        reports=SimpleNamespace(progress=lambda at, values: heard.append(values)),
        log=SimpleNamespace(drain=lambda fd: None),
    )
    jobs.send({"kind": "progress", "at": 1.0, "values": {"step": 7}})
    clock = SimpleNamespace(pace=Pace(floor_seconds=1, factor=1))
    ending = threading.Thread(target=_end, args=(attempt, clock), daemon=True)
    ending.start()
    ending.join(5)
    has_ended = not ending.is_alive()
    jobs.close()
    ending.join()
    agents.close()
    for fd in (log_read, log_write):
        os.close(fd)
    assert has_ended
    assert heard == [{"step": 7}]


@pytest.mark.parametrize("noise", [b"hello", b"[" * 100_000], ids=["no frame", "nested too deeply"])
def test_a_job_that_cannot_be_understood_hears_that_nobody_listens(noise):
    """Or it would wait for ever, with its slot, as soon as the socket is full of what it says."""
    ours, theirs = socket.socketpair()
    agents, jobs = Pipe(ours.detach()), Pipe(theirs.detach())
    attempt = SimpleNamespace(process=SimpleNamespace(pipe=agents), assignment=ASSIGNMENT)
    sending = threading.Thread(target=jobs.send_encoded, args=(noise,), daemon=True)
    sending.start()
    while agents.wait(10) and _take_frames(attempt, SimpleNamespace()):
        pass
    assert jobs.wait(5), "the agent has hung up"
    with pytest.raises(EOFError):
        jobs.receive()
    sending.join()
    for pipe in (agents, jobs):
        pipe.close()


def test_a_telling_grows_only_by_what_there_is_to_tell_and_one_of_an_older_release_has_less():
    told = {"incarnation": "i", "number": 1, "tokens": (7, 8)}
    assert json.loads(Running(**told).model_dump_json(exclude_defaults=True)) == {**told, "tokens": [7, 8]}
    sent = Running(**told, checkpoint_age_seconds={7: 1.5}).model_dump_json(exclude_defaults=True)
    assert Running.model_validate_json(sent).checkpoint_age_seconds == {7: 1.5}
    begun = {7: Process(pid=4711, device="cuda:0")}
    sent = Running(**told, begun=begun).model_dump_json(exclude_defaults=True)
    assert Running.model_validate_json(sent).begun == begun
    older = Running.model_validate_json('{"incarnation":"i","number":1,"tokens":[7]}')
    assert (older.begun, older.checkpoint_age_seconds) == ({}, {})
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Running(**told, checkpoint_age_seconds={7: -1.5})


def test_a_stand_in_survives_what_celery_does_to_exceptions():
    frame = {"module": "their.module", "type": "Outer.Broken", "args": encode_value(["x", 7]), "traceback": "Traceback"}
    raised = stand_in(frame)
    assert (type(raised).__module__, type(raised).__qualname__, raised.args) == (
        "their.module",
        "Outer.Broken",
        ("x", 7),
    )
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is type(raised)
    assert again.args == raised.args
    memory = stand_in(frame | {"module": "builtins", "type": "MemoryError"})
    assert not isinstance(memory, MemoryError)


def test_values_of_types_that_only_the_job_knows_are_handed_on_as_they_were_encoded():
    """A job may teach kombu types of its own (`kombu.utils.json.register_type`), or return a dict of this form."""
    encoded = {"__type__": "their.Money", "__value__": "3 EUR"}
    text = json.dumps({"price": encoded, "at": {"__type__": "date", "__value__": "2026-01-02"}})
    outcome = completed(SimpleNamespace(last_frame={"kind": "returned", "value": text}))
    assert outcome.value == {"price": encoded, "at": datetime.date(2026, 1, 2)}
    assert json.loads(encode_value(outcome.value)) == json.loads(text), "what whoever waits for the result decodes"
    raised = stand_in({"module": "their", "type": "TooDear", "args": json.dumps([encoded]), "traceback": ""})
    assert raised.args == (encoded,)


def test_text_for_the_record():
    assert storable_text("a\0b\udc80") == "a\N{REPLACEMENT CHARACTER}b?"
    assert storable_json('{"a\\u0000": ["\\ud800", 1, null]}') == {"a\N{REPLACEMENT CHARACTER}": ["?", 1, None]}
    assert storable_json('["\\u00e4"]') == ["ä"]


def stumbles_in(module: str):
    scope = {"__name__": module}
    exec("def stumble():\n    None.client", scope)
    return scope["stumble"]


def test_kombu_stumbling_over_a_closed_connection_is_a_lost_connection_and_nothing_else_is():
    with pytest.raises(ConnectionError, match="closed meanwhile"):
        consumer_loop(stumbles_in("kombu.transport.redis"))
    with pytest.raises(AttributeError):
        consumer_loop(stumbles_in("workers.somewhere"))


def test_a_message_that_is_acknowledged_on_a_closed_connection_keeps_no_node_from_stopping():
    consumer = object.__new__(NodeConsumer)
    for module, raised in (
        ("kombu.transport.redis", nullcontext()),
        ("workers.somewhere", pytest.raises(AttributeError)),
    ):
        consumer.hub = Hub()
        consumer.call_soon_ack(stumbles_in(module))
        with raised:
            consumer.hub.close()


def test_a_node_whose_folder_is_elsewhere_joins_the_stack_that_runs_here(tmp_path, monkeypatch):
    stack = tmp_path / "stack"
    stack.mkdir()
    (stack / "stack.json").write_text('{"broker_url": "redis://127.0.0.1:1/0"}')
    monkeypatch.setenv("CYXWIZ_HOME", str(stack))
    monkeypatch.delenv("CYXWIZ_BROKER_URL", raising=False)
    runs = []
    monkeypatch.setattr("workers.cli._set_up_logging", lambda: None)
    monkeypatch.setattr("workers.cli._run", lambda chosen, options: runs.append((chosen, options)))
    settings.cache_clear()
    try:
        found = CliRunner().invoke(worker, ["--home", str(tmp_path / "disk"), "--name", "n", "--label", "a=1"])
    finally:
        settings.cache_clear()
    assert found.exit_code == 0, found.output
    [(chosen, options)] = runs
    assert (chosen.home, chosen.broker()) == (tmp_path / "disk", "redis://127.0.0.1:1/0")
    assert (options.name, options.labels, options.share) == ("n", ("a=1",), "1/1")
