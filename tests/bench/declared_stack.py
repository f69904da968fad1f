"""Durable servers, a record, and a scheduler of its own process, for nodes that are only declared."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from broker.embedded import EmbeddedRedis
from db.embedded import EmbeddedPostgres
from db.migrate import upgrade
from tests.acceptance.processes import ServiceProcess

ROOT = Path(__file__).parents[2]


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """Servers with fsync on and an empty record; what a service must have in its environment to use them."""
    folder = Path(tempfile.mkdtemp(prefix="cyxwiz-bench-"))
    folder.chmod(0o711)
    try:
        with EmbeddedPostgres(folder / "postgres") as postgres, EmbeddedRedis(folder / "redis") as broker:
            url = postgres.create_database("cyxwiz")
            upgrade(url)
            yield {"CYXWIZ_HOME": str(folder), "CYXWIZ_DATABASE_URL": url, "CYXWIZ_BROKER_URL": broker.url}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def dsn(environment: Mapping[str, str]) -> str:
    """The record, as psycopg.connect() takes it."""
    return environment["CYXWIZ_DATABASE_URL"].replace("+psycopg", "")


@contextmanager
def scheduler(environment: dict[str, str]) -> Iterator[ServiceProcess]:
    """`cyxwiz scheduler`, which need not lead yet."""
    process = ServiceProcess("scheduler", ["scheduler"], environment, Path(environment["CYXWIZ_HOME"]), "leading")
    try:
        yield process
    finally:
        process.teardown()


@contextmanager
def told(module: str, environment: Mapping[str, str], given: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program of this bench in a process of its own: it gets the broker's URL, and JSON on stdin."""
    command = [sys.executable, "-m", f"tests.bench.{module}", environment["CYXWIZ_BROKER_URL"]]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps(given).encode())
    process.stdin.close()
    process.stdin = None
    try:
        yield process
        assert process.poll() in (None, 0), f"{module} has failed"
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=20)
