"""More capacity is one more worker; taking it away again loses nothing."""

from __future__ import annotations

import lab_jobs


def test_a_second_worker_takes_its_share_at_once_and_gives_back_what_it_cannot_finish(own_stack, tmp_path):
    own_stack.start_scheduler().ready()
    own_stack.start_worker("first", "--slots", "2").ready()
    gate = tmp_path / "gate"
    jobs = [lab_jobs.waits_for.submit(str(gate)) for _ in range(2)]
    jobs += [lab_jobs.waits_for.submit(str(tmp_path / f"gate{number}")) for number in range(50)]

    def running_on(name: str) -> list[str]:
        return [row["id"] for row in own_stack.client.jobs(states=["running"]) if row["node"] == name]

    own_stack.wait_until(lambda: len(running_on("first")) == 2)
    second = own_stack.start_worker("second", "--slots", "3")
    second.ready()
    own_stack.wait_until(lambda: len(running_on("second")) == 3)

    taken = running_on("second")
    assert second.stop() == 0
    for job_id in taken:
        assert own_stack.client.get(job_id).record()["state"] in {"pending", "assigned", "running"}

    gate.touch()
    for number in range(50):
        (tmp_path / f"gate{number}").touch()
    for job in jobs:
        assert job.result(timeout=60).startswith("gate")
    assert {row["state"] for row in own_stack.client.jobs(limit=100)} == {"completed"}

    def states() -> dict[str, str]:
        return {node["name"]: node["state"] for node in own_stack.client.nodes()}

    own_stack.wait_until(lambda: states() == {"first": "up", "second": "left"})
