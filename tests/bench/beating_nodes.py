"""Nodes that only beat: `python -m tests.bench.beating_nodes URL < nodes` sends what 10,000 agents would.

The script and the messages are the workers' own, readings and tellings as often as theirs, and each different from the
one before. They are made once and sent by few connections, so that whoever sends them takes little of the two cores.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Iterable
from typing import Any

import redis

from cyxwiz_tasks.protocol.names import BEATS, running_key, telemetry_key
from cyxwiz_tasks.protocol.reports import Process, Running
from cyxwiz_tasks.telemetry import GpuReading, NodeReading
from workers.heartbeat import _BEAT

BEATS_PER_SECOND = 2
#: between two beats, so many times some of the nodes have their turn
_SLICES = 50
#: a reading with each fourth beat, a telling with every second one: every 2 s and every 1 s
_READING, _TELLING = 4, 2
#: stands for a number of ten digits that rises from beat to beat
_NUMBER = 8_888_888_888
_TTL_SECONDS = 60


def main() -> None:
    """Beat until SIGTERM. Reads a JSON object from stdin: by node, the token of the attempt that runs there, or 0."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    tokens: dict[str, int] = json.load(sys.stdin)
    client = redis.Redis.from_url(sys.argv[1], client_name="beats")
    sha = client.script_load(_BEAT)
    connection = client.connection_pool.get_connection()
    nodes = list(tokens.items())
    slices = [nodes[at::_SLICES] for at in range(_SLICES)]
    blobs = [[_blob(connection, sha, part, beat) for beat in range(_READING)] for part in slices]
    began = time.monotonic()
    for number in itertools.count():
        beat, at = divmod(number, _SLICES)
        time.sleep(max(0.0, began + number / (_SLICES * BEATS_PER_SECOND) - time.monotonic()))
        if stopped:
            return
        text = blobs[at][beat % _READING].replace(b"%d" % _NUMBER, b"%d" % (1_000_000_000 + number))
        connection.send_packed_command([text], check_health=False)
        for _ in slices[at]:
            connection.read_response()


def _blob(connection: Any, sha: str, nodes: Iterable[tuple[str, int]], beat: int) -> bytes:
    commands = []
    for node_id, token in nodes:
        reading = _reading().model_dump_json() if beat % _READING == 0 else ""
        telling = ""
        if beat % _TELLING == 0:
            telling = _running(token).model_dump_json(exclude_defaults=True)
        keys = (BEATS, telemetry_key(node_id), running_key(node_id))
        commands.append(("EVALSHA", sha, len(keys), *keys, node_id, _TTL_SECONDS, reading, telling))
    return b"".join(connection.pack_commands(commands))


def _running(token: int) -> Running:
    if not token:
        return Running(incarnation="1", number=_NUMBER)
    begun = {token: Process(pid=4711, device="cuda:0")}
    return Running(incarnation="1", number=_NUMBER, tokens=(token,), begun=begun, checkpoint_age_seconds={token: 31.4})


def _reading() -> NodeReading:
    gpus = [
        GpuReading(
            index=index,
            memory_used_bytes=_NUMBER,
            utilization_percent=87.0,
            temperature_celsius=64.0,
            power_watts=281.5,
        )
        for index in range(4)
    ]
    return NodeReading(
        cpu_percent=41.7, ram_used_bytes=_NUMBER, disk_free_bytes=500_000_000_000, load_1m=3.14, gpus=gpus
    )


if __name__ == "__main__":
    main()
