"""What a script pushes is recorded to the byte."""

from __future__ import annotations

import redis

from broker.embedded import EmbeddedRedis
from tests.acceptance.processes import wait_until
from tests.chaos.faults.monitor import recorded_pushes

MESSAGE = b'{"text": "a \\"quoted\\" back\\\\slash\n", "bytes": "' + bytes(range(256)) + b'"}'


def test_pushes_of_scripts_and_of_nobody_else(server_folder):
    with EmbeddedRedis(server_folder / "redis") as server, redis.Redis.from_url(server.url) as client:
        with recorded_pushes(server, "a.list") as pushed:
            wait_until(lambda: any("O" in one["flags"] for one in client.client_list()), 5)
            client.lpush("a.list", b"by a client")
            push = "redis.call('LPUSH', KEYS[1], ARGV[1]) redis.call('LPUSH', 'another.list', 'other')"
            client.eval(push, 1, "a.list", MESSAGE)
            wait_until(lambda: pushed, 5)
        assert pushed == [MESSAGE]
