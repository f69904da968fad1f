"""A node's start and its life with a broker and a scheduler that come and go."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest

from broker.embedded import EmbeddedRedis
from cyxwiz_tasks.celery_app import app
from cyxwiz_tasks.protocol.names import BEATS, progress_key, telemetry_key
from tests.integration.app_on import app_on
from tests.integration.fake_scheduler import FakeScheduler
from tests.integration.node_process import NODE_CODE, NodeProcess, wait_until

sys.path.insert(0, str(NODE_CODE))
import node_jobs


def test_a_node_keeps_its_id_and_its_folder_is_its_own(broker_url, tmp_path):
    with FakeScheduler(broker_url) as scheduler:
        with NodeProcess(broker_url, tmp_path, "--name", "keeper") as node:
            node.ready()
            first = scheduler.of("register")[0]
            second = NodeProcess(broker_url, tmp_path, "--name", "keeper")
            with second:
                assert second.process.wait(60) == 1
            assert "Another worker runs with this node's name" in second.text
            assert node.end() == 0
        with NodeProcess(broker_url, tmp_path, "--name", "keeper") as node:
            wait_until(lambda: len(scheduler.of("register")) > 1)
            again = scheduler.of("register")[-1]
    assert again.node == first.node
    assert again.incarnation != first.incarnation


def test_a_node_beats_with_its_telemetry_and_idles_quietly(broker_url, tmp_path):
    with FakeScheduler(broker_url) as scheduler, NodeProcess(broker_url, tmp_path, "--name", "idle") as node:
        node.ready()
        node_id = scheduler.node.node
        first = wait_until(lambda: scheduler.client.zscore(BEATS, node_id))
        wait_until(lambda: scheduler.client.zscore(BEATS, node_id) > first)
        reading = json.loads(wait_until(lambda: scheduler.client.get(telemetry_key(node_id))))
        assert reading["ram_used_bytes"] > 0
        assert 0 < scheduler.client.ttl(telemetry_key(node_id)) <= 60
        agent = psutil.Process(node.process.pid)
        used = []
        # What the machine does beside it costs it time too: one quiet stretch is enough.
        while not used or (min(used) >= 0.05 and len(used) < 5):
            used.append(agent.cpu_percent(interval=3.0) / 100)
    assert min(used) < 0.05, f"of a core while idle: {used}"


def test_a_node_waits_for_a_broker_and_for_a_scheduler(server_folder, tmp_path):
    with EmbeddedRedis(server_folder / "redis") as server:
        url = server.url
    with NodeProcess(url, tmp_path, "--name", "early") as node:
        node.wait_for_text("redis")
        assert url not in node.text
        with EmbeddedRedis(server_folder / "redis") as server:
            if server.url != url:
                pytest.skip("the server came back with another address")
            node.wait_for_text("waits for a scheduler")
            with FakeScheduler(url):
                node.ready()


def test_jobs_go_on_while_redis_is_away_and_nothing_that_they_said_is_lost(server_folder, tmp_path):
    with EmbeddedRedis(server_folder / "redis") as server:
        url = server.url
        with app_on(url), FakeScheduler(url) as scheduler, NodeProcess(url, tmp_path, "--name", "steady") as node:
            node.ready()
            result = node_jobs.counts_until.delay(str(tmp_path / "go"))
            wait_until((tmp_path / "go.started").exists)
            scheduler.client.config_set("save", "")
            scheduler.client.execute_command("CLIENT", "KILL", "TYPE", "normal")
            scheduler.client.execute_command("CLIENT", "PAUSE", "1500", "ALL")
            (tmp_path / "go").touch()
            count = result.get(timeout=30)
            updates = [json.loads(f[b"update"]) for _, f in scheduler.client.xrange(progress_key(result.id))]
            steps = [u["values"]["step"] for u in updates if u["kind"] == "progress"]
            assert sorted(set(steps)) == list(range(count))
            assert node_jobs.add.delay(1, 2).get(timeout=30) == 3


def test_an_end_waits_for_a_scheduler_and_its_result_too(broker_url, tmp_path):
    app_there, scheduler = app_on(broker_url), FakeScheduler(broker_url)
    with app_there, scheduler, NodeProcess(broker_url, tmp_path, "--name", "patient") as node:
        node.ready()
        (tmp_path / "job").mkdir()
        result = node_jobs.waits.delay(str(tmp_path / "job"))
        wait_until((tmp_path / "job" / "pid").exists)
        scheduler.fall_silent()
        (tmp_path / "job" / "go").touch()
        node.wait_for_text("no scheduler has confirmed its end yet")
        assert result.state == "STARTED"
        scheduler.answers = True
        assert result.get(timeout=20) == "went"
    assert len(scheduler.of("ended", result.id)) >= 2


def test_paths_of_submitters_are_used_only_where_the_node_trusts_them(broker_url, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "their_jobs.py").write_text("from cyxwiz_tasks import job\n@job\ndef hello():\n    return 'hello'\n")
    header = {"version": 1, "entry": "their_jobs:hello", "path": str(theirs)}
    for options, expected in (((), None), (("--submitted-paths",), "hello")):
        home = tmp_path / "home"
        node_process = NodeProcess(broker_url, home, "--name", "trust", *options)
        with app_on(broker_url), FakeScheduler(broker_url) as scheduler, node_process as node:
            node.ready()
            result = app.send_task("their_jobs.hello", headers={"cyxwiz": header})
            ended = scheduler.wait_for("ended", result.id)
            del result
        assert ended.result == expected
        if expected is None:
            assert "their_jobs" in ended.message


def test_a_node_without_a_stack_says_what_to_do(tmp_path):
    node = NodeProcess("", tmp_path, "--name", "lost")
    del node._environment["CYXWIZ_BROKER_URL"]
    with node:
        assert node.process.wait(60) == 1
    assert "cyxwiz up" in node.text
    assert Path(tmp_path / "nodes").exists() is False
