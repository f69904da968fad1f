"""A record as a busy cluster leaves it: many jobs that wait, and the nodes that could run them."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import psycopg

from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.submission import Preparation
from tests.acceptance.processes import USER_CODE
from tests.bench.declared_nodes import declared
from tests.bench.placement_rate import make_shapes

SHAPES, OWNERS, PROJECTS = 50, 20, 4
_LIMITS = (None, 600.0, 3600.0, 4 * 3600.0)
#: the id in a kind's message, in whose place each job gets its own
_ID = "00000000-0000-4000-8000-000000000000"

_KINDS = """
    CREATE TEMPORARY TABLE kinds (
        number int PRIMARY KEY, owner text, project text, priority int, resources jsonb, shape text, envelope text,
        time_limit_seconds double precision
    )"""
_JOBS = """
    INSERT INTO jobs (id, task, entry, owner, project, priority, resources, shape, envelope, digest, accepted_at,
        time_limit_seconds, state)
    SELECT id, 'lab_jobs.add', 'lab_jobs:add', owner, project, priority, resources, shape,
        replace(envelope, %s, id::text), sha256(id::text::bytea), statement_timestamp(), time_limit_seconds, 'pending'
    FROM (SELECT gen_random_uuid() AS id, n FROM generate_series(1, %s) AS n) AS given
    JOIN kinds ON number = n::bigint * 7919 %% %s
    ORDER BY n"""
#: one attempt on each node, of the first kind
_RUNNING = """
    WITH running AS (
        INSERT INTO jobs (id, task, entry, owner, project, priority, resources, shape, envelope, digest, accepted_at,
            state, node_id, current_token, attempts, assigned_at, started_at, first_started_at)
        SELECT given.id, 'lab_jobs.add', 'lab_jobs:add', owner, project, priority, resources, shape,
            replace(envelope, %s, given.id::text), sha256(given.id::text::bytea), now(), 'running', given.node_id,
            nextval('attempt_token_seq'), 1, now(), now(), now()
        FROM (SELECT gen_random_uuid() AS id, id AS node_id FROM nodes) AS given JOIN kinds ON number = 0
        RETURNING id, node_id, current_token
    )
    INSERT INTO attempts (token, job_id, number, node_id, incarnation, gpus, gpu_memory_bytes, cpus, ram_bytes, state,
        epoch, assigned_at, started_at, lease_until)
    SELECT current_token, id, 1, node_id, '1', '{}', 0, 1, 0, 'running', 0, now(), now(), now() + interval '1 hour'
    FROM running RETURNING node_id::text, token"""
_NODES = """
    COPY nodes (id, name, hostname, incarnation, state, capability, slots, region, reputation, first_seen_at,
        registered_at, last_seen_at, up_seconds) FROM STDIN"""


def fill(dsn: str, jobs: int, nodes: int, *, running: bool = False) -> dict[str, int]:
    """Write so many waiting jobs of 1,000 kinds (SHAPES for each of OWNERS), and nodes; the ids of the nodes.

    `running`: on each node runs an attempt, whose token is the node's value; it is 0 without one.
    """
    kinds = list(_kinds())
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(_KINDS)
        with cursor.copy("COPY kinds FROM STDIN") as copy:
            for kind in kinds:
                copy.write_row(kind)
        cursor.execute(_JOBS, (_ID, jobs, len(kinds)))
        tokens = {}
        with cursor.copy(_NODES) as copy:
            for number, (node_id, capability) in enumerate(declared(nodes, random.Random(7))):
                tokens[node_id] = 0
                values = (node_id, f"node-{number}", f"node-{number}@declared", "1", "up", capability.model_dump_json())
                copy.write_row((*values, capability.slots, capability.region, 1, "now", "now", "now", 0))
        if running:
            tokens |= dict(cursor.execute(_RUNNING, (_ID,)).fetchall())
    with psycopg.connect(dsn, autocommit=True) as connection:
        # What autovacuum has done long ago in a record that has grown for days.
        connection.execute("VACUUM ANALYZE jobs, nodes, attempts")
        connection.execute("CHECKPOINT")
    return tokens


def _kinds() -> list[tuple[Any, ...]]:
    if str(USER_CODE) not in sys.path:
        sys.path.insert(0, str(USER_CODE))  # and there it stays: whoever submits needs it, too
    import lab_jobs

    found: list[tuple[Any, ...]] = []
    app = make_app("redis://nobody.invalid/0")
    preparation = Preparation(app, None)
    for number, (resources, priority) in enumerate(make_shapes(SHAPES)):
        for owner in range(OWNERS):
            limit = _LIMITS[number % len(_LIMITS)]
            options = {
                "id": _ID,
                "resources": resources,
                "priority": priority,
                "owner": f"owner-{owner}",
                "project": f"project-{owner % PROJECTS}",
                "time_limit": limit,
            }
            message = preparation.prepare(lab_jobs.add.s(number, 1), options).message.decode()
            wanted = json.loads(message)["headers"]["cyxwiz"].get("resources") or {}
            whose = (options["owner"], options["project"], priority.rank)
            found.append((len(found), *whose, json.dumps(wanted), resources.shape, message, limit))
    app.close()
    return found
