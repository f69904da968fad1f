"""Two scheduler processes: the one that leads is killed or frozen, and the other goes on."""

from __future__ import annotations

import re
import time

from broker.scheduler.command import SILENCE_SECONDS
from tests.acceptance.processes import ServiceProcess


def epoch_of(client):
    return client.status()["leader"]["epoch"]


def test_a_killed_leader_is_replaced_at_once_and_a_frozen_one_after_its_silence(own_stack):
    import lab_jobs

    first = own_stack.start_scheduler("first")
    first.ready()
    own_stack.start_worker("node").ready()
    second = own_stack.start_scheduler("second")
    own_stack.wait_until(lambda: "standing_by" in second.logs())
    assert lab_jobs.add.submit(1, 1).result(timeout=30) == 2

    began = time.monotonic()
    first.kill()
    assert lab_jobs.add.submit(1, 2).result(timeout=30) == 3
    assert time.monotonic() - began < SILENCE_SECONDS
    assert epoch_of(own_stack.client) == 2

    third = own_stack.start_scheduler("third")
    own_stack.wait_until(lambda: "standing_by" in third.logs())
    began = time.monotonic()
    second.kill("SIGSTOP")
    assert lab_jobs.add.submit(1, 3).result(timeout=30) == 4
    assert time.monotonic() - began < SILENCE_SECONDS + 10.0
    second.kill("SIGCONT")
    own_stack.wait_until(lambda: "event=term_over epoch=2" in second.logs())
    assert lab_jobs.add.submit(1, 4).result(timeout=30) == 5
    assert epoch_of(own_stack.client) == 3

    third.kill()
    assert lab_jobs.add.submit(1, 5).result(timeout=30) == 6, "the one that was frozen stands by again"


def test_up_on_shared_servers_is_ready_where_another_scheduler_leads(own_stack):
    own_stack.start_scheduler("first").ready()
    home = {"CYXWIZ_HOME": str(own_stack.home / "second")}
    arguments = ["up", "--only", "scheduler"]
    up = ServiceProcess("up", arguments, own_stack.environment | home, own_stack.home / "logs", prompt="up: Ctrl-C")
    own_stack.processes.append(up)
    up.ready(30)
    assert re.search(r"^scheduler +ready: stands by, for another one leads", up.logs(), re.MULTILINE)
    assert up.stop() == 0
