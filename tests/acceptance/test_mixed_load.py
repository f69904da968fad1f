"""Two hundred mixed jobs on three unlike nodes: each ends in the right state, on a node that fits it."""

from __future__ import annotations

import lab_jobs
from celery import chain

from cyxwiz_tasks import Resources, TrainingJob
from cyxwiz_tasks.celery_app import app

TRAININGS, FUNCTIONS, CHAINS, FAILURES = 60, 100, 20, 20
DEMANDS = (
    (Resources(), {"big", "mid", "small"}),
    (Resources(gpu_memory="20GB.."), {"big", "mid"}),
    (Resources(gpu_memory="40GB.."), {"big"}),
    (Resources(gpus=2), {"mid"}),
    (Resources(compute_capability=">=9.0"), {"big"}),
    (Resources(labels={"rack": "b*"}), {"mid"}),
)


def test_two_hundred_mixed_jobs(laboratory):
    client = laboratory.client
    trainings = [
        (TrainingJob(model="mlp", dataset="digits", epochs=1, batch_size=128, max_steps=3), demand)
        for demand, _ in (DEMANDS[i % len(DEMANDS)] for i in range(TRAININGS))
    ]
    expected: dict[str, tuple[str, set[str]]] = {}
    for number, handle in enumerate(client.submit_many([(job, {"resources": need}) for job, need in trainings])):
        expected[handle.id] = ("SUCCESS", DEMANDS[number % len(DEMANDS)][1])
    for number in range(FUNCTIONS):
        demand, nodes = DEMANDS[number % len(DEMANDS)]
        handle = lab_jobs.add.options(resources=demand).submit(number, 1)
        expected[handle.id] = ("SUCCESS", nodes)
    for number in range(CHAINS):
        last = chain(lab_jobs.add.s(number, 1), lab_jobs.needs_a_gpu.s()).apply_async()
        expected[last.id] = ("SUCCESS", {"big", "mid"})
        expected[last.parent.id] = ("SUCCESS", {"big", "mid", "small"})
    for number in range(FAILURES):
        demand, nodes = DEMANDS[number % len(DEMANDS)]
        expected[lab_jobs.fails.options(resources=demand).submit(f"failure {number}").id] = ("FAILURE", nodes)

    results = {job_id: app.AsyncResult(job_id) for job_id in expected}
    for result in results.values():
        result.get(timeout=100, propagate=False)

    rows = {row["id"]: row for row in laboratory.cyxwiz_json("jobs", "--limit", "1000")}
    for job_id, (state, nodes) in expected.items():
        assert results[job_id].state == state
        assert rows[job_id]["celery_state"] == state
        assert rows[job_id]["node"] in nodes
        assert rows[job_id]["attempts"] == 1
