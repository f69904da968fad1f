"""What must hold in a simulated cluster: at each commit, at each word, and when all is over."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from broker.scheduler.demand import demand_of
from broker.scheduler.memory import Memory
from broker.scheduler.outbox import STATE_PREFIX
from cyxwiz_tasks.protocol.names import REJECTED
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import CELERY_STATES, JOB_MOVES, TERMINAL_JOB_STATES, JobState
from db.models import NodeState
from tests.simulation.clock import WALL_SECONDS
from tests.simulation.fake_redis import is_final
from tests.simulation.memory_db.tables import AttemptRow, EventRow, Tables, Tx

if TYPE_CHECKING:
    from tests.simulation.cluster import SimCluster

#: of an ended job: whoever is to tell Celery of it has had the time
_TOLD_SECONDS = 60.0
#: so long a node may run what the record has ended, although it hears everything
_ZOMBIE_SECONDS = 30.0
#: `broker.scheduler.duties.untold` looks no further back, when Redis was emptied
_UNTOLD_SECONDS = 500.0


def at_commit(cluster: SimCluster, tx: Tx) -> None:
    """No node is given more than it has, and no job two attempts."""
    tables = tx.tables
    newest = next(reversed(tables.attempts), 0)
    if newest == cluster.newest_token:
        return
    cluster.newest_token = newest
    live = [tables.attempts[token] for token in tables.live]
    jobs = [row.job_id for row in live]
    cluster.world.check(len(jobs) == len(set(jobs)), f"a job has two live attempts: {sorted(jobs)}")
    by_node: dict[str, list[AttemptRow]] = defaultdict(list)
    for row in live:
        if row.token not in tables.members:
            by_node[row.node_id].append(row)
    for member in tables.members.values():
        if member.ended_at is None and member.new.lead in tables.live:
            by_node[member.new.node_id].append(tables.attempts[member.new.lead])
    for node in cluster.nodes:
        problem = _too_much(tables, node.capability, by_node[node.id])
        cluster.world.check(problem is None, f"{node.name} has more than it can hold: {problem}")


def _too_much(tables: Tables, has: Any, rows: list[AttemptRow]) -> str | None:
    demands = [demand_of(Resources.parse(tables.jobs[row.job_id].new.resources)) for row in rows]
    if len(rows) > has.slots or sum(demand.cpus for demand in demands) > has.cpu_cores:
        return f"{len(rows)} attempts"
    for gpu in has.gpus:
        users = [demand for demand, row in zip(demands, rows, strict=True) if gpu.index in row.new.gpus]
        if len(users) > 1 and not all(demand.shared for demand in users):
            return f"GPU {gpu.index} is not its job's alone"
        if sum(demand.gpu_memory_bytes for demand in users) > gpu.memory_bytes:
            return f"the memory of GPU {gpu.index}"
    return None


def at_word(cluster: SimCluster, command: Any) -> None:
    """The scheduler says only of a job that has ended that it has."""
    if command[0] != "XADD" or '"kind":"end"' not in command[-1]:
        return
    job = cluster.postgres.tables.jobs.get(str(command[1]).rpartition(".")[2])
    state = job.state if job is not None else "unknown"
    told = f'"state":"{CELERY_STATES[JobState(state)]}"' if job is not None else ""
    over = state in TERMINAL_JOB_STATES and told in command[-1]
    cluster.world.check(bool(over), f"job {command[1][-4:]} is {state}, and watchers were told: {command[-1]}")


def at_calm(cluster: SimCluster) -> None:
    """Nothing has gone wrong for a while: zombies are gone, and what can run does."""
    tables, world = cluster.postgres.tables, cluster.world
    for node in cluster.nodes:
        if world.now - node.disturbed_at < _ZOMBIE_SECONDS:
            continue
        for token, run in node.runs.items():
            lead = tables.members[token].new.lead if token in tables.members else token
            ended_at = tables.attempts[lead].ended_at
            old = ended_at is not None and tables.now() - ended_at > _ZOMBIE_SECONDS
            world.check(not old or run.ended is not None, f"{node.name} still runs {token}, which has ended long ago")
    if could := _could_run(cluster):
        # A leader takes a moment.
        world.after(4.0, _still_waits, cluster, could)


def _still_waits(cluster: SimCluster, before: set[tuple[str, int]]) -> None:
    if cluster.is_calm():
        could = before & _could_run(cluster)
        cluster.world.check(not could, f"jobs {sorted(could)} could run, and wait")


def _could_run(cluster: SimCluster) -> set[tuple[str, int]]:
    """Jobs that a leader who had just read the record would place, and their attempts so far."""
    leader = next(one.leader for one in cluster.schedulers if one.leader is not None)
    if any(True for _ in leader.memory.claims):
        # A place that is being cleared for somebody more urgent looks free, and is not.
        return set()
    placed = _fresh(cluster, leader.memory).placer.place(10)
    return {(one.job_id[-4:], cluster.postgres.tables.jobs[one.job_id].attempts) for one in placed}


def _fresh(cluster: SimCluster, known: Memory) -> Memory:
    """The record as a new leader reads it, and how the one that leads knows that the nodes are."""
    fresh = Memory(known.cluster.weights[:4], known.cluster.placement)
    with cluster.postgres.transaction() as tx:
        fresh.load(tx)  # type: ignore[arg-type]
    for node in known.cluster:
        if node.node_id in fresh.cluster:
            fresh.cluster.set_state(node.node_id, NodeState(node.state))
    return fresh


def at_end(cluster: SimCluster) -> None:
    """Everything is over, everything adds up, and a new leader would know what this one knows."""
    _record(cluster)
    _jobs(cluster)
    _witness(cluster)
    _redis(cluster)
    _memory(cluster)


def _record(cluster: SimCluster) -> None:
    tables, check = cluster.postgres.tables, cluster.world.check
    by_job: dict[str, list[EventRow]] = defaultdict(list)
    newest_epoch = 0
    for event in tables.events:
        check(event.epoch >= newest_epoch, f"a word of epoch {event.epoch} after one of {newest_epoch}")
        newest_epoch = max(newest_epoch, event.epoch)
        if event.job_id is not None:
            by_job[event.job_id].append(event)
    for id, job in tables.jobs.items():
        state, token = None, 0
        for event in by_job[id]:
            who = f"job {id[-4:]}"
            check(state not in TERMINAL_JOB_STATES, f"{who}: something came after its end")
            check((event.token or token) >= token, f"{who}: a word of token {event.token} after one of {token}")
            token = event.token or token
            if event.to_state is not None:
                check(event.from_state == state, f"{who}: a move from {event.from_state}, and it was {state}")
                legal = state is None or JobState(event.to_state) in JOB_MOVES[JobState(state)]
                check(legal, f"{who}: {state} > {event.to_state}")
                state = event.to_state
        check(job.state == state, f"job {id[-4:]} is {job.state}, and its events say {state}")


def _jobs(cluster: SimCluster) -> None:
    tables, check = cluster.postgres.tables, cluster.world.check
    for job in cluster.workload.jobs.values():
        row = tables.jobs.get(job.id)
        who = f"job {job.id[-4:]}"
        if row is None:
            lost = job.acked is not None or (job.sent_at is not None and job.sent_at > cluster.flushed_at)
            check(not lost, f"{who} was sent, or even accepted, and is lost")
            continue
        # A job that ran out of memory may have learned to ask for more than there is.
        over = row.state in TERMINAL_JOB_STATES or row.state == "held" or (row.state == "pending" and row.learned)
        check(bool(over), f"{who} is still {row.state}, attempt {row.attempts}, cause {row.cause}: {row.message}")
        won = [a for a in tables.attempts.values() if a.job_id == job.id and a.state == "completed"]
        check(len(won) == (row.state == "completed"), f"{who} is {row.state} with {len(won)} results")
        if won:
            check(row.result == {"token": row.current_token}, f"{who} has the result of another attempt: {row.result}")


def _witness(cluster: SimCluster) -> None:
    check = cluster.world.check
    for job, tokens in cluster.witness.confirmed.items():
        row = cluster.postgres.tables.jobs[job]
        only = len(tokens) == 1 and row.current_token in tokens
        check(only, f"job {job[-4:]}: nodes were told that {tokens} count, {row.current_token} does")
    for job, intervals in cluster.witness.intervals.items():
        known = sorted(intervals, key=lambda interval: float(interval[1]))
        for one, other in itertools.pairwise(known):
            apart = one[0] == other[0] or (one[2] is not None and one[2] <= other[1])
            check(apart or not one[3], f"exclusive job {job[-4:]} ran twice at once: {one}, {other}")


def _redis(cluster: SimCluster) -> None:
    server, check, now = cluster.server, cluster.world.check, WALL_SECONDS + cluster.world.now
    check(not server.lists.get(REJECTED), f"messages were rejected: {list(server.lists.get(REJECTED, ()))[:2]}")
    for job in cluster.postgres.tables.jobs.values():
        ended_at = job.ended_at
        if ended_at is None or now - ended_at < _TOLD_SECONDS:
            continue
        if ended_at > cluster.flushed_at - _UNTOLD_SECONDS:
            state = server.get(STATE_PREFIX + job.id)
            check(is_final(state), f"job {job.id[-4:]} is {job.state}, and Celery shows {state and state[:40]!r}")


def _memory(cluster: SimCluster) -> None:
    """The leader's memory is what the record says."""
    leader = next((s.leader for s in cluster.schedulers if s.leader is not None), None)
    check = cluster.world.check
    check(leader is not None, "nobody leads")
    if leader is None:
        return
    memory = leader.memory
    fresh = _fresh(cluster, memory)
    for what, known, real in (
        ("live attempts", {j: a.token for j, a in memory.live.items()}, {j: a.token for j, a in fresh.live.items()}),
        ("waiting jobs", _waiting(memory), _waiting(fresh)),
        ("places", _places(memory), _places(fresh)),
        ("charges", _charges(memory), _charges(fresh)),
    ):
        check(known == real, f"the leader's {what} are {known}, the record's {real}")


def _waiting(memory: Memory) -> set[str]:
    return {*memory.delayed, *(id for queue in memory.backlog for id in queue._live)}


def _charges(memory: Memory) -> dict[str, Any]:
    """By job, whose account pays for what; and what that makes for each."""
    held = {
        job_id: (charge.account.project, charge.account.owner, charge.taken)
        for job_id, charge in memory.shares._holders.items()
    }
    running = {(account.project, account.owner): account.running for account in memory.shares if account.running}
    return {"held": held, "running": running}


def _places(memory: Memory) -> dict[str, tuple[Any, ...]]:
    return {
        node.node_id: (node.slots_free, node.cpus_free, tuple(node.gpu_free), sorted(node.holdings))
        for node in memory.cluster
    }
