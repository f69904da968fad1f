"""pytest-celery's nodes as plain local processes: `celery_worker_cluster[0].kill()` and friends, without containers."""

from __future__ import annotations

import os
import signal as signals
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pytest_celery import CeleryTestContainer, CeleryTestWorker

CYXWIZ = str(Path(sys.executable).with_name("cyxwiz"))
USER_CODE = Path(__file__).with_name("user_code")


def wait_until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "") -> Any:
    """The first true value of `condition`, looked at every 20 ms; an AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what or condition}"
        time.sleep(0.02)
    return value


class ServiceProcess(CeleryTestContainer):  # type: ignore[misc]
    """One `cyxwiz ...` process with its log in a file, under the names by which pytest-celery's nodes use it."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], folder: Path, prompt: str) -> None:
        # The base class wants a container; what its nodes call is all defined here.
        self._name, self.arguments, self.folder, self.prompt = name, arguments, folder, prompt
        self.environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "160"} | environment
        folder.mkdir(parents=True, exist_ok=True)
        self.log_file = folder / f"{name}.log"
        self.started_at_offset = 0
        self.process: subprocess.Popen[bytes]
        self.start()

    @property
    def command_line(self) -> list[str]:
        return [CYXWIZ, *self.arguments]

    def start(self) -> None:
        with open(self.log_file, "ab") as log:
            self.started_at_offset = log.tell()
            self.process = subprocess.Popen(
                self.command_line,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def ready_prompt(self) -> str:
        return self.prompt

    @property
    def name(self) -> str:
        return self._name

    @property
    def id(self) -> str:
        return f"{self._name}-{self.process.pid}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> str:
        return "running" if self.process.poll() is None else "exited"

    def reload(self) -> None:
        self.process.poll()

    def logs(self) -> str:
        return self.log_file.read_text(errors="replace")

    def new_logs(self) -> str:
        """What was written since the last start."""
        return self.log_file.read_bytes()[self.started_at_offset :].decode(errors="replace")

    def ready(self, timeout: float = 60.0) -> bool:
        def is_ready() -> bool:
            assert self.process.poll() is None, f"{self._name} exited {self.process.returncode}:\n{self.logs()[-4000:]}"
            return self.prompt in self.new_logs()

        wait_until(is_ready, timeout, f"{self._name} to say {self.prompt!r}:\n{self.logs()[-4000:]}")
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        number = getattr(signals, signal) if isinstance(signal, str) else signal
        self.process.send_signal(number)
        if number == signals.SIGKILL:
            self.process.wait(10)

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM and the exit status; SIGKILL and an AssertionError if it does not end in time."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                return self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"{self._name} did not stop:\n{self.logs()[-4000:]}") from None
        return self.process.returncode

    def restart(self, timeout: float = 30.0) -> None:
        self.stop(timeout)
        self.start()
        self.ready()

    def teardown(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class WorkerProcess(ServiceProcess):
    """`cyxwiz worker --name NAME ...`."""

    def __init__(
        self, name: str, environment: dict[str, str], folder: Path, *options: str, fake_gpus: str | None = None
    ) -> None:
        if fake_gpus:
            environment = environment | {"CYXWIZ_FAKE_GPUS": fake_gpus}
        arguments = ["worker", "--name", name, "--path", str(USER_CODE), *options]
        super().__init__(name, arguments, environment, folder, prompt=" ready")

    def version(self) -> str:
        import celery

        return str(celery.__version__)

    def log_level(self) -> str:
        return "INFO"

    def worker_name(self) -> str:
        return self._name


class NodeUnderTest(CeleryTestWorker):  # type: ignore[misc]
    """A worker node in pytest-celery's vocabulary: kill(), restart(), wait_for_log(), get_running_processes_info()."""

    def get_running_processes_info(
        self, columns: list[str] | None = None, filters: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        agent = psutil.Process(self.container.pid)
        rows = []
        for process in [agent, *agent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                rows.append(process.as_dict(attrs=columns))
        return [row for row in rows if all(row.get(key) == value for key, value in (filters or {}).items())]
