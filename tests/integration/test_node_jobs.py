"""What becomes of jobs on a node: results, failures with words to act on, progress, logs, canvas."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import chain, chord, group

from broker.embedded import EmbeddedRedis
from cyxwiz_tasks.celery_app import app
from cyxwiz_tasks.errors import JobFailed, ResultRefused
from cyxwiz_tasks.protocol.names import INBOX, log_key, node_queue, progress_key
from tests.integration.app_on import app_on
from tests.integration.fake_scheduler import FakeScheduler
from tests.integration.job_pids import is_alive
from tests.integration.node_process import NODE_CODE, NodeProcess, wait_until

sys.path.insert(0, str(NODE_CODE))
import ahead_jobs
import node_jobs


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="cyxwiz-node-tests-"))
    with EmbeddedRedis(folder / "redis") as redis_server:
        yield redis_server.url
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def scheduler(server: str) -> Iterator[FakeScheduler]:
    with FakeScheduler(server) as scheduler:
        yield scheduler


@pytest.fixture(scope="module")
def node(server: str, scheduler: FakeScheduler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    home = tmp_path_factory.mktemp("home")
    options = ("--name", "lab", "--slots", "2", "--preload", "no_such_module", "--preload", "ahead_jobs")
    environment = {"CYXWIZ_FAKE_GPUS": "2x24GB:8.9", "CYXWIZ_RESULT_LIMIT_BYTES": "8000"}
    with NodeProcess(server, home, *options, **environment) as node:
        yield node.ready()


@pytest.fixture(autouse=True)
def _app(server: str, node: NodeProcess) -> Iterator[None]:
    with app_on(server):
        yield


def progress_of(scheduler: FakeScheduler, job: str) -> list[dict]:
    return [json.loads(fields[b"update"]) for _, fields in scheduler.client.xrange(progress_key(job))]


def log_of(scheduler: FakeScheduler, job: str) -> str:
    return b"".join(fields.get(b"text", b"") for _, fields in scheduler.client.xrange(log_key(job))).decode()


def test_the_node_registers_with_what_it_can_do(node, scheduler):
    told = scheduler.of("register")[0]
    assert told.name == "lab"
    assert told.capability.slots == 2
    assert len(told.capability.gpus) == 2
    assert f"node lab ({told.node[:8]}) ready: 2 slots, 2 x " in node.text


def test_a_result_comes_back_and_is_reported_before_celery_has_it(scheduler):
    result = node_jobs.add.delay(2, 3)
    assert result.get(timeout=20) == 5
    started, ended = scheduler.of("started", result.id)[0], scheduler.of("ended", result.id)[0]
    assert (started.device, ended.outcome, ended.result, ended.exit_code) == ("cpu", "completed", 5, 0)
    assert ended.seconds > 0


def test_the_job_knows_where_it_runs_and_its_environment_holds_no_secrets(node, scheduler):
    first, second = (node_jobs.where_am_i.delay().get(timeout=20) for _ in range(2))
    assert first["pid"] != second["pid"]
    assert (first["device"], first["visible"], first["attempt"], first["torch"]) == ("cpu", "", 1, True)
    assert first["path"] == str(NODE_CODE)
    assert Path(first["artifacts"]) == node.home / "artifacts" / first["job"] / "attempt-1"
    everything = json.dumps(first)
    for secret in ("opensesame", "canary-1", "CYXWIZ_", "SOME_API_TOKEN", *scheduler.secrets):
        assert secret not in everything
    assert "OMP_WAIT_POLICY=PASSIVE" in first["environ_file"]


def test_the_agent_holds_neither_torch_nor_user_code(node):
    maps = Path(f"/proc/{node.process.pid}/maps").read_text()
    assert "libtorch" not in maps


def test_a_module_is_imported_once_for_all_jobs_where_the_node_was_told_to(node):
    (first_import, first), (second_import, second) = (ahead_jobs.who_imported.delay().get(timeout=20) for _ in range(2))
    assert first_import == second_import
    assert len({first_import, first, second}) == 3
    assert "--preload no_such_module failed, jobs import it themselves: ModuleNotFoundError" in node.text


def test_an_exception_is_the_users_own_with_the_jobs_traceback(scheduler):
    result = node_jobs.raises.delay()
    with pytest.raises(node_jobs.OutOfLuck) as caught:
        result.get(timeout=20)
    assert caught.value.args == ("no luck left", 7)
    assert 'raise OutOfLuck("no luck left", 7)' in result.traceback
    ended = scheduler.of("ended", result.id)[0]
    assert (ended.outcome, ended.cause, ended.exception) == ("failed", "error", "node_jobs.OutOfLuck")
    assert ended.exception_bases == ("node_jobs.OutOfLuck", "builtins.Exception", "builtins.BaseException")
    assert ended.traceback.splitlines()[1].strip().startswith('File "')
    assert "node_jobs.py" in ended.traceback
    assert "cyxwiz_tasks" not in ended.traceback


def test_text_that_no_database_stores_is_cleaned(scheduler):
    result = node_jobs.raises_odd_text.delay()
    with pytest.raises(ValueError, match="a NUL"):
        result.get(timeout=20)
    assert "\0" not in scheduler.wait_for("ended", result.id).message


@pytest.mark.parametrize(
    ("call", "cause", "words"),
    [
        (lambda: node_jobs.is_killed_after.delay("the last line"), "crashed", ["SIGKILL", "lab", "the last line"]),
        (lambda: node_jobs.exits.delay(3), "error", ["status 3", "return a value"]),
        (lambda: node_jobs.exits.delay(0), "error", ["status 0"]),
        (node_jobs.runs_out_of_memory.delay, "out_of_memory", ["4 TB", "ram", "smaller batch"]),
        (node_jobs.returns_an_object.delay, "error", ["type object", "JSON", "ctx.artifacts"]),
        (lambda: node_jobs.returns_much.delay(9000), "error", ["9002 bytes", "8000", "ctx.artifacts"]),
        (node_jobs.overstays.delay, "time_limit", ["0.3 s", "time_limit="]),
        (lambda: node_jobs.overstays.apply_async(time_limit=0.2), "time_limit", ["0.2 s"]),
    ],
)
def test_every_bad_end_is_a_failure_with_its_cause_and_words_to_act_on(scheduler, call, cause, words):
    result = call()
    with pytest.raises((JobFailed, MemoryError)):
        result.get(timeout=20)
    ended = scheduler.wait_for("ended", result.id)
    assert (ended.outcome, ended.cause) == ("failed", cause)
    for word in words:
        assert word in ended.message


def test_a_result_that_cannot_be_kept_has_an_end_of_its_own(scheduler):
    result = node_jobs.returns_much.delay(9000)
    with pytest.raises(ResultRefused, match="CYXWIZ_RESULT_LIMIT_BYTES"):
        result.get(timeout=20)
    ended = scheduler.wait_for("ended", result.id)
    assert "cyxwiz_tasks.errors.ResultRefused" in ended.exception_bases, "by which the scheduler knows it"


@pytest.mark.parametrize(
    ("entry", "name", "words"),
    [
        ("no_such_module:add", "no_such_module.add", ["no_such_module", "lab", str(NODE_CODE), "--path"]),
        ("node_jobs:no_such_job", "node_jobs.no_such_job", ["no_such_job", "node_jobs.py"]),
        ("node_jobs:not_a_job", "node_jobs.not_a_job", ["is no job", "@job"]),
        ("os:system", "os.system", ["is no job"]),
        ("node_jobs:add", "node_jobs.other", ["is the task node_jobs.add"]),
        (None, "some.task", ["names no module"]),
    ],
)
def test_a_message_can_name_nothing_but_a_job(scheduler, entry, name, words):
    header = {"version": 1} | ({"entry": entry} if entry else {})
    result = app.send_task(name, args=["echo"], headers={"cyxwiz": header})
    with pytest.raises(Exception, match="lab"):
        result.get(timeout=20)
    ended = scheduler.wait_for("ended", result.id)
    assert (ended.outcome, ended.cause) == ("failed", "error")
    for word in words:
        assert word in ended.message


def test_every_report_is_in_the_stream_and_in_the_history_and_the_last_is_a_state(scheduler):
    states = []
    result = node_jobs.reports.delay(300)
    assert result.get(timeout=20, on_message=lambda meta: states.append((meta["status"], meta["result"]))) == 300
    updates = [u for u in progress_of(scheduler, result.id) if u["kind"] == "progress"]
    assert [u["values"]["step"] for u in updates] == list(range(1, 301))
    assert updates[1]["values"]["loss"] == "nan"
    rows = [row for report in scheduler.of("metrics", result.id) for row in report.rows]
    assert [row["step"] for row in rows] == list(range(1, 301))
    assert all(row["at"] > 1e9 for row in rows)
    shown = [meta for status, meta in states if status == "PROGRESS"]
    assert shown[-1]["step"] == 300
    assert len(shown) < 100
    started = [meta for status, meta in states if status == "STARTED"]
    assert [meta["node"] for meta in started] == ["lab"]


def test_all_output_of_the_tree_is_in_the_log_file_and_in_the_stream(node, scheduler):
    """And the name of that file is none that a job would use in its working directory."""
    result = node_jobs.prints.delay("hällo \033[1m")
    result.get(timeout=20)
    expected = "hällo \033[1m\nto stderr\nby the descriptor\nfrom a child\n"
    assert log_of(scheduler, result.id) == expected
    token = scheduler.assignments[result.id].token
    assert (node.home / "nodes" / "lab" / "attempts" / str(token) / ".cyxwiz" / "log").read_text() == expected
    assert scheduler.client.xrevrange(log_key(result.id), count=1)[0][1] == {b"end": b"1"}
    assert scheduler.client.ttl(log_key(result.id)) > 0


def test_what_a_job_leaves_behind_is_gone_before_its_end_is_reported(tmp_path):
    assert node_jobs.leaves_a_daemon.delay(str(tmp_path)).get(timeout=20) == "done"
    pid = int((tmp_path / "daemon").read_text())
    assert not is_alive(pid)


def test_chains_chords_groups_links_and_errbacks(tmp_path):
    assert chain(node_jobs.add.s(1, 2), node_jobs.add.s(10), node_jobs.add.s(100)).apply_async().get(timeout=20) == 113
    assert group(node_jobs.add.s(i, i) for i in range(3)).apply_async().get(timeout=20) == [0, 2, 4]
    assert chord([node_jobs.add.s(i, i) for i in range(3)], node_jobs.total.s()).apply_async().get(timeout=20) == 6
    broken = chord([node_jobs.add.s(1, 1), node_jobs.raises.si()], node_jobs.total.s()).apply_async()
    with pytest.raises(Exception, match="no luck left"):
        broken.get(timeout=20)
    for number, call in enumerate(
        (
            lambda folder: node_jobs.add.apply_async((1, 1), link=node_jobs.leaves_a_daemon.si(folder)),
            lambda folder: node_jobs.raises.apply_async(link_error=node_jobs.leaves_a_daemon.si(folder)),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        call(str(folder))
        wait_until((folder / "daemon").exists)


def test_a_retry_is_a_new_message_of_the_same_job(scheduler):
    result = node_jobs.tries_again.delay()
    assert result.get(timeout=20) == 1
    first, second = scheduler.of("ended", result.id)
    assert (first.outcome, second.outcome) == ("retry", "completed")
    assert "first try" in first.message
    # All that the record knows a job by is in the message that its report carries.
    message = json.loads(first.retry)
    assert (message["headers"]["id"], message["headers"]["retries"]) == (result.id, 1)
    assert message["headers"]["cyxwiz"]["entry"] == "node_jobs:tries_again"
    assert "cyxwiz_assignment" not in message["headers"]


def test_a_job_that_ignores_its_result_writes_no_state(scheduler):
    result = node_jobs.add.apply_async((1, 1), ignore_result=True)
    assert scheduler.wait_for("ended", result.id).outcome == "completed"
    assert scheduler.client.get(f"celery-task-meta-{result.id}") is None


def test_a_fenced_attempt_leaves_no_result(node, scheduler):
    scheduler.commits = lambda _: False
    try:
        result = node_jobs.add.delay(1, 1)
        scheduler.wait_for("ended", result.id)
    finally:
        scheduler.commits = lambda _: True
    wait_until(lambda: any(result.id in line and "not the job's last word" in line for line in node.text.splitlines()))
    assert node_jobs.add.delay(1, 2).get(timeout=20) == 3
    assert result.state in ("STARTED", "PENDING")


def test_a_message_for_an_earlier_start_is_dropped_without_a_word(node, scheduler):
    result = node_jobs.add.signature((1, 1)).freeze()
    message = made_message(node_jobs.add.signature((1, 1), task_id=result.id))
    scheduler.publish(message, incarnation="00000000-0000-0000-0000-000000000000")
    node.wait_for_text(f"job {result.id}: its message is for an earlier start")
    assert node_jobs.add.delay(1, 2).get(timeout=20) == 3
    assert not scheduler.of("started", result.id)
    assert not scheduler.of("ended", result.id)


def test_a_message_that_passed_no_scheduler_fails(scheduler):
    result = node_jobs.add.signature((1, 1)).freeze()
    message = made_message(node_jobs.add.signature((1, 1), task_id=result.id))
    scheduler.client.lpush(node_queue(scheduler.node.node), message)
    with pytest.raises(Exception, match="did not come through the scheduler"):
        result.get(timeout=20)


def made_message(signature) -> bytes:
    """The message that a signature sends, as kombu writes it into a list."""
    made = app.amqp.as_task_v2(signature.options["task_id"], signature.task, signature.args, signature.kwargs)
    properties = made.properties | {"delivery_mode": 2, "priority": 0, "body_encoding": "base64", "delivery_tag": "1"}
    message = {
        "body": base64.b64encode(json.dumps(made.body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": made.headers | signature.options["headers"],
        "properties": properties | {"delivery_info": {"exchange": "", "routing_key": INBOX}},
    }
    return json.dumps(message).encode()
