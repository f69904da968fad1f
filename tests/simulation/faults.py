"""What goes wrong in a simulated cluster, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from broker.scheduler.inbox import INBOX_LISTS
from cyxwiz_tasks.protocol.names import COMMANDS, REPORTS, node_queue

if TYPE_CHECKING:
    from tests.simulation.cluster import SimCluster

FAILPOINTS = ("scheduler.after_take", "scheduler.before_commit", "scheduler.after_commit", "scheduler.after_publish")


def plan(cluster: SimCluster, kinds: Sequence[str], count: int, seconds: float) -> None:
    """So many faults, spread over so many seconds: by default of a few kinds, since some hide what others show."""
    kinds = kinds or cluster.world.random.sample(list(FAULTS), cluster.world.random.randint(2, 8))
    for _ in range(count):
        cluster.world.after(cluster.world.between(5.0, seconds), FAULTS[cluster.world.random.choice(kinds)], cluster)


def node_killed(cluster: SimCluster) -> None:
    node = cluster.any_node()
    node.die(power=cluster.world.happens(0.4))
    cluster.world.after(cluster.world.between(0.5, 90.0), node.start)


def node_frozen(cluster: SimCluster) -> None:
    cluster.any_node().freeze(cluster.seconds(60.0))


def node_cut_off(cluster: SimCluster) -> None:
    cluster.any_node().cut(cluster.seconds(240.0))


def node_leaves(cluster: SimCluster) -> None:
    cluster.any_node().leave(cluster.world.between(1.0, 60.0))


def node_drained(cluster: SimCluster) -> None:
    node = cluster.any_node()
    cluster.workload.drain(node.name, cluster.world.random.choice([0.0, 30.0, None]))
    cluster.world.after(cluster.world.between(10.0, 200.0), cluster.workload.undrain, node.name)


def redis_away(cluster: SimCluster) -> None:
    cluster.stop_redis(cluster.seconds(40.0))


def redis_emptied(cluster: SimCluster) -> None:
    cluster.flush_redis()


def redis_restarted_empty(cluster: SimCluster) -> None:
    cluster.flush_redis()
    cluster.stop_redis(cluster.seconds(10.0))


def message_lost(cluster: SimCluster) -> None:
    """As if a node had taken it and died before it began."""
    node = cluster.any_node()
    lost = cluster.server.rpop(node_queue(node.id), 1)
    cluster.world.say("fault", "message lost", node=node.name, count=len(lost))


def messages_doubled(cluster: SimCluster) -> None:
    lists = [key for key in (*INBOX_LISTS, REPORTS, COMMANDS) if cluster.server.lists.get(key)]
    lists += [node_queue(node.id) for node in cluster.nodes if cluster.server.lists.get(node_queue(node.id))]
    for key in lists:
        cluster.server.lists[key].extendleft(list(cluster.server.lists[key]))


def postgres_restarted(cluster: SimCluster) -> None:
    cluster.stop_postgres(cluster.seconds(20.0))


def commit_lost(cluster: SimCluster) -> None:
    cluster.postgres.next_commit = cluster.world.random.choice(["lost", "unknown"])


def scheduler_killed(cluster: SimCluster) -> None:
    scheduler = cluster.any_scheduler()
    if cluster.world.happens(0.3):
        scheduler.kill()
    else:
        scheduler.armed[cluster.world.random.choice(FAILPOINTS)] = None


def scheduler_frozen(cluster: SimCluster) -> None:
    scheduler, seconds = cluster.any_scheduler(), cluster.seconds(40.0)
    if cluster.world.happens(0.3):
        scheduler.freeze(seconds)
    else:
        scheduler.armed[cluster.world.random.choice(FAILPOINTS)] = seconds


def scheduler_cut_off(cluster: SimCluster) -> None:
    """From Redis."""
    scheduler = cluster.any_scheduler()
    scheduler.linked = False
    scheduler.disturb()
    cluster.world.say(scheduler.name, "cut off")
    cluster.world.after(cluster.seconds(30.0), scheduler.link)


def answer_lost(cluster: SimCluster) -> None:
    cluster.any_scheduler().answers_to_lose = cluster.world.random.randint(1, 3)


FAULTS: dict[str, Callable[[SimCluster], None]] = {
    fault.__name__: fault
    for fault in (
        node_killed,
        node_frozen,
        node_cut_off,
        node_leaves,
        node_drained,
        redis_away,
        redis_emptied,
        redis_restarted_empty,
        message_lost,
        messages_doubled,
        postgres_restarted,
        commit_lost,
        scheduler_killed,
        scheduler_frozen,
        scheduler_cut_off,
        answer_lost,
    )
}
