"""Some of the worlds that `make worlds` plays by the thousand, and what a broken scheduler looks like there."""

from __future__ import annotations

from collections import Counter

import pytest

from broker.scheduler import claims, consolidation, stopping
from broker.scheduler.branch import Branch
from broker.scheduler.cluster import Cluster
from broker.scheduler.duties import preempt
from broker.scheduler.giving_back import UNTOUCHED
from broker.scheduler.node import Kept, Node
from broker.scheduler.placement import Placer
from broker.scheduler.quotas import Quotas
from tests.property_size import examples
from tests.worlds.__main__ import play
from tests.worlds.books import Broken
from tests.worlds.world import World

#: in each hundred worlds
OFTEN_SEEN = {
    *("placed", "gangs", "lost", "cancelled", "reserved", "kept promises", "went on from a checkpoint"),
    *(
        "preempted",
        "asked to give back",
        "gangs asked",
        "gangs that places were cleared for",
        "cleared in time",
        "moved",
    ),
}


def test_all_that_is_promised_of_placement_holds_in_worlds_with_all_of_it():
    seen = Counter[str]()
    for seed in range(examples(120)):
        counts, broken = play(seed)
        assert broken is None, f"make worlds SEED={seed}: {broken}"
        seen.update(counts)
    assert {name for name, count in seen.items() if count} >= OFTEN_SEEN, "something that is to be seen never happened"


def _give_gpus_twice(monkeypatch):
    take = Node.take

    def take_one_less(node, job_id, holding):
        take(node, job_id, holding._replace(positions=holding.positions[1:]))

    monkeypatch.setattr(Node, "take", take_one_less)


def _place_gangs_in_part(monkeypatch):
    whole = Placer._book_gang
    monkeypatch.setattr(Placer, "_book_gang", lambda *given, **more: whole(*given, **more)._replace(others=()))


def _keep_nothing(monkeypatch):
    monkeypatch.setattr(Cluster, "keep", lambda cluster, node, job_id, kept: None)


def _ask_no_quota(monkeypatch):
    monkeypatch.setattr(Quotas, "admits", lambda quotas, project, wanted: True)


def _serve_the_least_urgent_first(monkeypatch):
    open_branch = Branch.open

    def open_turned(branch, child, key):
        open_branch(branch, child, -key if branch.parent is None else key)

    monkeypatch.setattr(Branch, "open", open_turned)


def _place_nobody(monkeypatch):
    monkeypatch.setattr(Placer, "place", lambda placer, limit, now: [])


def _ask_whoever_stands_in_the_way(monkeypatch):
    choose = preempt.choose
    monkeypatch.setattr(preempt, "choose", lambda nodes, rank, *given: choose(nodes, UNTOUCHED, *given))


def _tell_one_member_of_a_gang_to_leave(monkeypatch):
    def tell_one(turn, live, reason):
        turn.outbox.control(live.node_id, stopping.preemption(live, reason, turn.settings))

    monkeypatch.setattr(stopping, "preempt", tell_one)


def _keep_nothing_of_what_is_cleared(monkeypatch):
    monkeypatch.setattr(claims, "_share", lambda room, claim: Kept(0, 0, 0, ()))


def _ask_the_same_job_for_ever(monkeypatch):
    monkeypatch.setattr(preempt.Preempt, "_spared", lambda duty, turn, limit: set())


def _move_to_nowhere(monkeypatch):
    monkeypatch.setattr(consolidation, "_fit", lambda cluster, movers, rows: True)


@pytest.mark.parametrize(
    "bug",
    [
        _give_gpus_twice,
        _place_gangs_in_part,
        _keep_nothing,
        _ask_no_quota,
        _serve_the_least_urgent_first,
        _place_nobody,
        _ask_whoever_stands_in_the_way,
        _tell_one_member_of_a_gang_to_leave,
        _keep_nothing_of_what_is_cleared,
        _ask_the_same_job_for_ever,
        _move_to_nowhere,
    ],
)
def test_a_bug_is_found(monkeypatch, bug):
    bug(monkeypatch)
    with pytest.raises(Broken):
        _play_some()


def _play_some():
    for seed in range(300):
        World(seed).play()
