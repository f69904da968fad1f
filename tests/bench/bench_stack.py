"""The stack that the bench measures: durable servers (fsync on), a scheduler and one worker, as users run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cyxwiz_tasks import Client
from cyxwiz_tasks.settings import settings
from tests.acceptance.processes import USER_CODE, ServiceProcess, wait_until

ROOT = Path(__file__).parents[2]


@contextmanager
def bench_stack(*options: str) -> Iterator[Client]:
    """`cyxwiz up` in a folder of its own, and a client to it."""
    folder = Path(tempfile.mkdtemp(prefix="cyxwiz-bench-"))
    folder.chmod(0o711)
    home = folder / "home"
    # The last one would have every job's process compile the job's module anew.
    for name in ("CYXWIZ_BROKER_URL", "CYXWIZ_DATABASE_URL", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    os.environ["CYXWIZ_HOME"] = str(home)
    settings.cache_clear()
    sys.path.insert(0, str(USER_CODE))
    up = ServiceProcess(
        "up", ["up", "--path", str(USER_CODE), *options], {"CYXWIZ_HOME": str(home)}, folder, "up: Ctrl-C"
    )
    try:
        up.ready()
        with Client() as client:
            yield client
    finally:
        up.teardown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def bare_celery_worker(broker_url: str) -> Iterator[None]:
    """The yardstick: Celery's own worker with its default pool, two processes, on the same Redis."""
    log = Path(tempfile.mkstemp(prefix="bare-celery-")[1])
    with open(log, "wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.bench.bare_celery", "worker", "-c", "2", "-Q", "bare"]
            + ["--without-gossip", "--without-mingle", "-n", "bare@localhost", "-l", "INFO"],
            env=os.environ | {"BARE_BROKER_URL": broker_url},
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: b" ready." in log.read_bytes(), 30, f"the bare worker: {log}")
        yield
    finally:
        worker.terminate()
        worker.wait(20)
        log.unlink()
