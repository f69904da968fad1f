"""Scaling out: the line that `cyxwiz up --listen` prints starts a worker on another machine, here another namespace."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.processes import CYXWIZ, USER_CODE, ServiceProcess, wait_until

OURS, THEIRS = "10.213.7.1", "10.213.7.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def two_machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them."""
    mark = secrets.token_hex(3)
    names = (f"cyx-{mark}-a", f"cyx-{mark}-b")
    try:
        ip("netns", "add", names[0])
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root and iproute2 for network namespaces")
    ip("netns", "add", names[1])
    ip("link", "add", f"v{mark}a", "netns", names[0], "type", "veth", "peer", f"v{mark}b", "netns", names[1])
    for name, end, address in ((names[0], "a", OURS), (names[1], "b", THEIRS)):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", f"v{mark}{end}")
        ip("-n", name, "link", "set", f"v{mark}{end}", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield names
    for name in names:
        ip("netns", "del", name)


class InNamespace(ServiceProcess):
    """A `cyxwiz` process on one of the two machines."""

    def __init__(
        self, namespace: str, name: str, arguments: list[str], environment: dict[str, str], folder: Path
    ) -> None:
        self.namespace = namespace
        super().__init__(name, arguments, environment, folder, prompt=" ready" if name == "worker" else "up: Ctrl-C")

    def start(self) -> None:
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, CYXWIZ, *self.arguments],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def test_the_printed_line_joins_a_worker_from_another_machine(two_machines, server_folder):
    home = server_folder / "home"
    up = InNamespace(
        two_machines[0],
        "up",
        ["up", "--listen", OURS, "--only", "postgres,redis,scheduler"],
        {"CYXWIZ_HOME": str(home)},
        server_folder / "run",
    )
    try:
        up.ready()
        [line] = [line.strip() for line in up.logs().splitlines() if line.strip().startswith("CYXWIZ_BROKER_URL=")]
        found = re.fullmatch(r"CYXWIZ_BROKER_URL='?(redis://:\S+@10\.213\.7\.1:\d+/0)'? cyxwiz worker", line)
        assert found, line
        worker = InNamespace(
            two_machines[1],
            "worker",
            ["worker", "--name", "far", "--path", str(USER_CODE)],
            {"CYXWIZ_BROKER_URL": found[1], "CYXWIZ_HOME": str(server_folder / "far")},
            server_folder / "run",
        )
        try:
            worker.ready()
            done = subprocess.run(
                ["ip", "netns", "exec", two_machines[0], CYXWIZ, "submit", "--model", "mlp", "--dataset", "digits"]
                + ["--epochs", "1", "--follow", "--json"],
                env=os.environ | {"CYXWIZ_HOME": str(home)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr + worker.logs()
            assert worker.stop() == 0
        finally:
            worker.teardown()
        assert up.stop() == 0
    finally:
        up.teardown()
    wait_until(lambda: not (home / "stack.json").exists())
