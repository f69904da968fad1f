"""Some of the worlds that `make worlds` plays by the thousand, and what a broken scheduler looks like there."""

from __future__ import annotations

from collections import Counter

import pytest

from broker.scheduler.branch import Branch
from broker.scheduler.cluster import Cluster
from broker.scheduler.node import Node
from broker.scheduler.placement import Placer
from broker.scheduler.quotas import Quotas
from tests.property_size import examples
from tests.worlds.__main__ import play
from tests.worlds.books import Broken
from tests.worlds.world import World


def test_all_that_is_promised_of_placement_holds_in_worlds_with_all_of_it():
    seen = Counter[str]()
    for seed in range(examples(150)):
        counts, broken = play(seed)
        assert broken is None, f"make worlds SEED={seed}: {broken}"
        seen.update(counts)
    assert all(seen.values()), "something that is to be seen never happened"


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


@pytest.mark.parametrize(
    "bug",
    [
        _give_gpus_twice,
        _place_gangs_in_part,
        _keep_nothing,
        _ask_no_quota,
        _serve_the_least_urgent_first,
        _place_nobody,
    ],
)
def test_a_bug_is_found(monkeypatch, bug):
    bug(monkeypatch)
    with pytest.raises(Broken):
        _play_some()


def _play_some():
    for seed in range(300):
        World(seed).play()
