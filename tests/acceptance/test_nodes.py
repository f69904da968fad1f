"""Nodes as `cyxwiz nodes` and pytest-celery's vocabulary see them."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

MODELS = {"big": [80], "mid": [24, 24], "small": []}


def test_every_node_is_listed_with_what_it_can_do(laboratory):
    nodes = {node["name"]: node for node in laboratory.cyxwiz_json("nodes")}
    assert set(nodes) == set(MODELS)
    for name, sizes in MODELS.items():
        capability = nodes[name]["capability"]
        assert [gpu["memory_bytes"] // 2**30 for gpu in capability["gpus"]] == sizes
        assert all(gpu["fake"] for gpu in capability["gpus"])
        assert capability["cpu_cores"] == psutil.cpu_count() or capability["cpu_cores"] >= 1
        assert capability["ram_bytes"] > 2**28
        assert capability["torch"].startswith("2.")
        assert capability["memory_bandwidth_bytes_per_second"] > 0
        assert capability["matmul_gflops"] > 0
    assert nodes["big"]["capability"]["labels"]["rack"] == "a1"


def test_a_node_runs_its_jobs_in_waiting_processes_and_its_agent_holds_no_torch(celery_worker_cluster):
    for node in celery_worker_cluster:
        maps = Path(f"/proc/{node.container.pid}/maps").read_text()
        assert "libtorch" not in maps
        assert len(node.get_running_processes_info()) >= 3


def test_a_restarted_node_keeps_its_id_and_takes_jobs_again(own_stack):
    import lab_jobs

    own_stack.start_scheduler().ready()
    worker = own_stack.start_worker("phoenix")
    worker.ready()
    [before] = own_stack.client.nodes()
    worker.restart()
    own_stack.wait_until(lambda: own_stack.client.nodes()[0]["incarnation"] != before["incarnation"])
    [after] = own_stack.client.nodes()
    assert after["id"] == before["id"]
    assert lab_jobs.add.submit(1, 1).result(timeout=30) == 2


def test_the_jobs_of_a_killed_node_are_placed_again_within_seconds(own_stack, tmp_path):
    import lab_jobs

    own_stack.start_scheduler().ready()
    doomed = own_stack.start_worker("doomed")
    doomed.ready()
    run = lab_jobs.waits_for.submit(str(tmp_path / "never"))
    own_stack.wait_until(lambda: run.state == "STARTED")
    own_stack.start_worker("other").ready()
    began = time.monotonic()
    doomed.kill()
    own_stack.wait_until(lambda: run.record()["attempts"][-1]["node"] == "other")
    assert time.monotonic() - began < 12.0, "and not only after its lease"
    run.cancel()
