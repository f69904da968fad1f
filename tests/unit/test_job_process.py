"""What becomes of a job whose function does odd things to its process: a real one, without any broker."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cyxwiz_tasks.runtime.entry import _raised
from cyxwiz_tasks.runtime.exception_cause import cause_of
from cyxwiz_tasks.runtime.pipe import encode_value
from cyxwiz_tasks.runtime.rehearsal import _frame
from workers import warm_process
from workers.failure import stand_in
from workers.job_environment import job_environment
from workers.warm_process import ForkServer, WarmProcess

JOB_CODE = Path(__file__).with_name("job_code")
_PATIENCE_SECONDS = 30.0


class Ran(NamedTuple):
    said: list[dict[str, Any]]
    log: str
    exit_code: int


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    # With it neither Python's streams nor C's hold anything back.
    environment = job_environment({**os.environ, "PYTHONUNBUFFERED": ""}, 1)
    server = ForkServer(environment, mark="odd", code_paths=[str(JOB_CODE)], preload=["prints_ahead"])
    yield server
    server.stop()


def begun(server: ForkServer, folder: Path, name: str, *args: Any) -> WarmProcess:
    process = server.fork()
    give(process, folder, name, *args)
    return process


def give(process: WarmProcess, folder: Path, name: str, *args: Any) -> None:
    task, entry = f"odd_jobs.{name}", f"odd_jobs:{name}"
    frame = _frame(str(folder)) | {"task": task, "entry": entry, "paths": [str(JOB_CODE)], "result_limit_bytes": 8000}
    process.give(frame | {"body": encode_value([args, {}, {}])})


def ended(process: WarmProcess) -> Ran:
    assert select.select([process.status_fd], [], [], _PATIENCE_SECONDS)[0], "its process does not end"
    exit_code, said, log = process.read_exit_code(), [], b""
    assert process.end_tree() == []
    with suppress(EOFError):
        while process.pipe.wait(0):
            said += process.pipe.receive_all()
    while data := os.read(process.log_fd, 65536):
        log += data
    process.close()
    return Ran(said, log.decode(), exit_code)


def run(server: ForkServer, folder: Path, name: str, *args: Any) -> Ran:
    return ended(begun(server, folder, name, *args))


def result(ran: Ran) -> Any:
    assert [frame["kind"] for frame in ran.said] == ["returned"], ran
    return ran.said[0]["value"].strip('"')


@pytest.mark.parametrize(
    ("name", "exit_code", "log"),
    [("forks_and_returns_twice", 0, ""), ("forks_and_raises_in_the_fork", 1, "ValueError: in the fork\n")],
)
def test_a_fork_that_runs_on_to_the_end_of_the_function_does_not_speak_for_the_job(
    server, tmp_path, name, exit_code, log
):
    ran = run(server, tmp_path, name)
    assert result(ran) == f"the fork exited with {exit_code}"
    assert ran.log.endswith(log)


@pytest.mark.parametrize("closed", [True, False])
def test_a_result_survives_an_output_that_cannot_be_flushed(server, tmp_path, closed):
    assert result(run(server, tmp_path, "writes_elsewhere", closed)) == "done"


def test_what_is_printed_on_a_restored_output_is_in_the_log_at_once(server, tmp_path):
    ran = run(server, tmp_path, "restores_its_output_and_is_killed")
    assert (ran.log, ran.exit_code) == ("the last line\n", -9)


def test_what_c_code_printed_is_in_the_log(server, tmp_path):
    assert run(server, tmp_path, "prints_from_c").log == "from C\n"


def test_threads_end_their_work_after_the_function_has_returned(server, tmp_path):
    process = begun(server, tmp_path, "leaves_a_thread", str(tmp_path))
    assert process.pipe.receive()["kind"] == "returned"
    (tmp_path / "go").touch()
    assert ended(process).exit_code == 0
    assert (tmp_path / "written").exists()


def test_kills_for_memory_while_a_process_waited_for_its_job_say_nothing_of_the_job(server, tmp_path, monkeypatch):
    kills = [1]
    monkeypatch.setattr(warm_process, "oom_kill_count", lambda cgroup: kills[-1])
    process = server.fork()
    kills.append(2)
    give(process, tmp_path, "reads_its_arguments")
    assert not process.kernel_ran_out_of_memory()
    kills.append(3)
    assert process.kernel_ran_out_of_memory()
    ended(process)


@pytest.mark.parametrize(
    "error", [ValueError("x" * 1_000_000), UnicodeDecodeError("utf-8", b"\xff" * 1_000_000, 0, 1, "invalid start byte")]
)
def test_an_exception_that_holds_much_is_told_in_short(error):
    try:
        raise error
    except ValueError as raised:
        frame = _raised(raised)
    assert len(json.dumps(frame)) < 100_000
    assert stand_in(frame).args == (frame["text"],)
    assert frame["traceback"].startswith("Traceback (most recent call last):\n  File")
    assert cause_of(error) == frame["cause"] == "error"


def test_a_job_has_no_arguments_of_ours(server, tmp_path):
    assert result(run(server, tmp_path, "reads_its_arguments")) == "[]"
