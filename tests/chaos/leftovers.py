"""What a run leaves, written to files: the record, Redis, processes, sessions. The checker reads nothing else."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from tests.chaos.stack import MARKER, Stack

_TABLES = ("leadership", "nodes", "jobs", "attempts", "gang_members", "events")
_STATE_PREFIX = "celery-task-meta-"


def dump_record(stack: Stack) -> dict[str, Any]:
    """Every row of the tables that matter. Moments become Unix times."""
    with stack.servers.database() as connection:
        return {table: _rows(connection, table) for table in _TABLES}


def _rows(connection: psycopg.Connection[Any], table: str) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        cursor.execute(psycopg.sql.SQL("SELECT * FROM {}").format(psycopg.sql.Identifier(table)))
        return [{name: _plain(value) for name, value in row.items()} for row in cursor]


def _plain(value: Any) -> Any:
    if hasattr(value, "timestamp"):
        return value.timestamp()
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


def dump_redis(stack: Stack) -> dict[str, Any]:
    """The lengths of all lists and sorted sets, and what Celery's backend says of each job."""
    with stack.servers.redis_client() as client:
        lengths: dict[str, int] = {}
        states: dict[str, Any] = {}
        for key in client.scan_iter(count=1000):
            name = key.decode(errors="replace")
            if name.startswith(_STATE_PREFIX):
                with suppress(ValueError, TypeError):
                    states[name.removeprefix(_STATE_PREFIX)] = json.loads(client.get(key) or b"null")["status"]
            elif (kind := client.type(key)) in (b"list", b"zset", b"hash", b"set"):
                lengths[name] = _length(client, key, kind)
        return {"lengths": lengths, "states": states}


def _length(client: redis.Redis, key: bytes, kind: bytes) -> int:
    count = {b"list": client.llen, b"zset": client.zcard, b"hash": client.hlen, b"set": client.scard}[kind]
    return int(count(key))


def processes(stack: Stack) -> list[dict[str, Any]]:
    """Every process of this run that is still there, except the servers and this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.pid != os.getpid() and process.environ().get(MARKER) == stack.run_id:
                found.append({"pid": process.pid, "ppid": process.ppid(), "command": process.cmdline()})
    return found


def job_children(stack: Stack) -> list[dict[str, Any]]:
    """Daemons that jobs have left behind."""
    return [one for one in processes(stack) if any(word == stack.run_id for word in one["command"])]


def sessions(stack: Stack) -> dict[str, int]:
    """What services that have ended still hold at the server."""
    queries = {
        "sessions": "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'cyxwiz%'",
        "advisory_locks": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        "prepared_transactions": "SELECT count(*) FROM pg_prepared_xacts",
    }
    with stack.servers.database() as connection:
        return {name: int((connection.execute(query).fetchone() or [0])[0]) for name, query in queries.items()}


def find_secrets(stack: Stack, folder: Path, record: dict[str, Any]) -> list[str]:
    """Where one of the run's secrets stands: in a log, in what jobs saw, in the record, in Redis."""
    places = [(str(path.name), path.read_bytes()) for path in (folder / "logs").glob("*.log")]
    places.append(("witness", (folder / "witness.jsonl").read_bytes()))
    places += [(f"record.{table}", json.dumps(rows).encode()) for table, rows in record.items()]
    with stack.servers.redis_client() as client:
        for key in client.scan_iter(count=1000):
            with suppress(redis.RedisError):
                places.append((f"redis {key.decode(errors='replace')}", client.dump(key) or b""))
    secrets = [secret.encode() for secret in stack.secrets if secret]
    return sorted({name for name, text in places for secret in secrets if secret in text})
