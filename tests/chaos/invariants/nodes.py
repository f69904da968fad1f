"""Nodes that fall silent, against what the record says of them."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History, Row

#: faults that the schedulers, PostgreSQL and Redis do not feel; of nodes, only others can have them at the same time
_ELSEWHERE = frozenset(
    {
        *("kill_job", "freeze_job", "cancel_racing", "foreign_messages", "client_link_reset"),
        *("kill_worker", "terminate_worker", "freeze_worker", "freeze_worker_briefly", "disk_full"),
        *("partition", "partition_briefly", "node_deaf", "node_mute", "slow_link", "thin_link"),
        *("link_reset_burst", "link_refused", "link_cut_in_answer", "duplicate_delivery", "lost_message"),
    }
)
#: beyond the lease, what a busy machine may take to look at the beats and to write it down
_BOUND_SECONDS = 1.5


def silent_nodes_are_lost(history: History) -> Iterator[str]:
    """A node whose processes stood still for longer than a lease is lost by then, if nothing else was wrong meanwhile.

    After a fault of the servers or the schedulers a node has its lease anew, so those are given time to pass.
    """
    lease_seconds = history.run.get("lease_seconds", 0.0)
    names = {node["id"]: node["name"] for node in history.record.get("nodes", [])}
    lost = [
        (names.get(event["node_id"]), event["at"])
        for event in history.record.get("events", [])
        if event["job_id"] is None and event["to_state"] == "lost"
    ]
    for fault in history.faults:
        if fault["kind"] != "freeze_worker" or not fault["hit"] or "frozen_at" not in fault["proof"]:
            continue
        name, began = fault["proof"]["node"], fault["proof"]["frozen_at"]
        due = began + lease_seconds + _BOUND_SECONDS
        if due > fault["at"] or _disturbed(history, fault, began - lease_seconds, due):
            continue
        if not any(other == name and began <= at <= due for other, at in lost):
            yield f"node {name} stood still from {began:.3f} on, and was not lost by {due:.3f}"


def _disturbed(history: History, fault: Row, begins: float, ends: float) -> bool:
    return any(
        other["number"] != fault["number"]
        and other["kind"] not in _ELSEWHERE
        and other["began_at"] < ends
        and other["at"] > begins
        for other in history.faults
    )
