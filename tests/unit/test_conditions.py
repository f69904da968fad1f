"""Conditions that nodes put on jobs: what they mean, what is refused and where, and that placement keeps to them."""

from __future__ import annotations

import pytest

from broker.scheduler.acceptance import check, refused_by
from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.placement import Placer
from cyxwiz_tasks.conditions import LONGEST, Applicant, Condition
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.unit.fleet import capability, cluster_of
from workers.accept import checked_accept

JOB = Resources.parse({"gpus": 2, "gpu_memory": "24GB..80GB", "cpus": 4, "ram": "32GB"})
ANN = Applicant("ann", "vision", Priority.HIGH)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('owner == "ann"', True),
        ('"ann" != owner', False),
        ('owner in ["lab-a", "ann"] and priority >= normal', True),
        ('owner not in ("ann",)', False),
        ('project in {"vision", "speech"}', True),
        ("priority >= critical", False),
        ('low < priority < "critical"', True),
        ("priority in [high, critical]", True),
        ("1 <= gpus < 2", False),
        ("gpus == 2.0", True),
        ('gpu_memory <= "24GB"', True),
        ('gpu_memory in ["12GB", "24GB"]', True),
        ("ram > 34359738367", True),
        ('"16GB" >= ram', False),
        ("not shared", True),
        ("shared == True", False),
        ('cpus > 8 or not (owner == "bob" or project == "")', True),
        ("gpus <= cpus", True),
        ("True", True),
        ("owner in []", False),
    ],
)
def test_what_a_condition_means(text: str, holds: bool) -> None:
    assert Condition.parse(text).holds(JOB, ANN) == holds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at character 1: invalid syntax. Write for example: owner in"),
        ('owner = "ann"', "at character 7: invalid syntax"),
        ("(" * 500 + ")" * 500, "too many nested parentheses"),
        ("x" * 2000, f"has 2000 characters: {LONGEST} may be written"),
        ('task == "x"', 'at character 1: "task" is not known. Known are owner, project, priority, .*low, normal'),
        ("owner == ann", 'at character 10: "ann" is not known.* a text stands in quotes'),
        ("owner", "at character 1: this is a text, not a condition"),
        ("owner and gpus", 'at character 1: "owner" is a text: compare it with something'),
        ('owner < "b"', "at character 9: a text is not more or less than another"),
        ('owner in "lab-a"', "at character 10: in takes a list on its right"),
        ("owner in [project]", "at character 10: a list holds texts"),
        ('gpus == "2"', "at character 9: a text is compared with a number"),
        ("gpus == owner", "at character 1: a number is compared with a text"),
        ('owner == "ann" and priority > 2', "at character 31: a number is compared with a priority"),
        ('priority >= "urgent"', "at character 13: a text is compared with a priority"),
        ('gpu_memory <= "big"', 'at character 15: "big" is not a size'),
        ('owner is "ann"', "write == or !="),
        ("owner == None", 'at character 10: "None" may not stand here'),
        ('__import__("os").system("true")', r"at character 1: .* may not stand here"),
        ("owner.__class__ == 1", "may not stand here"),
        ("[x for x in owner]", "may not stand here"),
        ("lambda: True", "may not stand here"),
        ('f"{owner}" == "ann"', "may not stand here"),
        ("ram > 16 * 1024", 'at character 7: "16 . 1024" may not stand here'),
        ("(gpus := 1) == 1", "may not stand here"),
        ("owner if shared else project", "may not stand here"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Condition.parse(text)


def test_a_worker_does_not_start_with_one_and_a_scheduler_does_not_let_it_in() -> None:
    with pytest.raises(InvalidSettings, match=r"^--accept: at character 10: "):
        checked_accept("owner == ann")
    assert checked_accept(None) == {}
    assert checked_accept('owner == "ann"') == {"accept": 'owner == "ann"'}
    with pytest.raises(InvalidSettings, match=r"^accept: at character 10: "):
        check(capability(accept="owner == ann"))
    check(capability())


def test_a_condition_that_only_a_newer_release_reads_takes_nothing() -> None:
    assert refused_by(["owner.group == 1", "True"], JOB, ANN) == {"owner.group == 1"}


def _waiting(number: int, owner: str, resources: Resources | None = None) -> Waiting:
    return Waiting(f"job-{number}", number, resources or Resources(), Priority.NORMAL, owner)


def test_placement_keeps_to_the_conditions() -> None:
    cluster, backlog = cluster_of(a=capability(slots=9, accept='owner == "ann"')), Backlog()
    for number, owner in enumerate(["bob", "ann", "cem", "ann"]):
        backlog.add(_waiting(number, owner))
    placer = Placer(cluster, backlog)
    assert {placed.job_id for placed in placer.place(9)} == {"job-1", "job-3"}
    # A condition that nobody knew when those jobs began to wait.
    cluster.upsert_node("b", "b", capability(slots=9, accept='owner != "bob"'), "1")
    assert [(placed.job_id, placed.node_id) for placed in placer.place(9)] == [("job-2", "b")]
    cluster.upsert_node("a", "a", capability(slots=9), "2")
    assert [(placed.job_id, placed.node_id) for placed in placer.place(9)] == [("job-0", "a")]


def test_owners_whom_the_same_nodes_refuse_share_their_scores() -> None:
    cluster, backlog = Cluster(), Backlog()
    for number in range(3):
        cluster.upsert_node(f"n{number}", f"n{number}", capability(slots=9, accept='owner in ["ann", "bob"]'), "1")
    cluster.upsert_node("all", "all", capability(slots=100), "1")
    for number in range(40):
        backlog.add(_waiting(number, f"guest-{number}"))
    for number in range(40, 80):
        backlog.add(_waiting(number, "ann" if number % 2 else "bob"))
    placer = Placer(cluster, backlog)
    assert len(placer.place(80)) == 80
    assert len(placer._shapes) == 2
