"""Why a job waits, in numbers and in sentences that a person can act on."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.explain import Explanation, why
from broker.scheduler.placement import Placer
from broker.scheduler.smallest_change import changed
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.errors import NotFound
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from db.models import Cordon, NodeState
from tests.unit.fleet import A100, RTX_3090, T4, capabilities, capability, cluster_of, requirements

LABELLED: dict[str, Any] = {"labels": {"tier": "gold"}, "region": "eu-west", "cuda": "12.4", "driver": "550.54"}
TWO = {"small": capability(ram="15GB", cpus=4, disk_free_bytes=2**30), "gpu-1": capability(RTX_3090, T4, **LABELLED)}

#: what no node has: the requirement that is named, and what the sentence says
NOWHERE: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"gpus": 8}, "gpus", ["8 GPUs", "gpu-1 has 2", "gpus=2"]),
    ({"gpu_memory": "80GB"}, "gpu_memory", ["the largest has 24GB, on gpu-1", 'gpu_memory="24GB"', "bigger|larger"]),
    ({"gpu_memory": "24GB", "gpus": 2}, "gpu_memory", ["2 GPUs", "largest has 15GB", 'gpu_memory="15GB"']),
    ({"gpu_memory": "..8GB"}, "gpu_memory", ["smallest has 15GB, on gpu-1", 'gpu_memory="..15GB"']),
    ({"gpu_model": "H100"}, "gpu_model", ['"H100"', "NVIDIA GeForce RTX 3090, Tesla T4"]),
    ({"compute_capability": ">=9.0"}, "compute_capability", ['">=9.0"', "are 7.5, 8.6"]),
    (
        {"gpu_model": "T4", "gpu_memory": "24GB"},
        "gpus_together",
        ["gpu_memory and gpu_model at the same time", "Tesla T4 (15GB, 7.5)"],
    ),
    ({"cuda": ">=13"}, "cuda", ['"12.4"', "1 without a known version"]),
    ({"driver": ">=600"}, "driver", ['driver="550.54"']),
    ({"torch": "==2.11"}, "torch", ['torch="2.13.0"']),
    ({"cpus": 64}, "cpus", ["64 CPU cores", "gpu-1 has 16", "cpus=16"]),
    ({"ram": "512GB"}, "ram", ["gpu-1 has most, 64GB", 'ram="64GB"']),
    ({"ram": "..8GB"}, "ram", ["small has least", 'ram="..15GB"']),
    ({"disk": "2TB"}, "disk", ["gpu-1 has most, 500GB", 'disk="500GB"']),
    ({"os": "Windows"}, "os", ["Windows", "Linux Debian GNU/Linux 12 (bookworm)"]),
    ({"region": "us*"}, "region", ["us*", "there is eu-west"]),
    ({"labels": {"tier": "silver"}}, "labels.tier", ["tier=silver", "there is gold"]),
    ({"labels": {"zone": "b"}}, "labels.zone", ["the label zone", "--label zone=b"]),
    ({"node": "gpu-7"}, "node", ["gpu-7", "gpu-1, small"]),
    ({"exclude_nodes": ["gpu-1", "small"]}, "exclude_nodes", ["exclude_nodes", "gpu-1, small"]),
]


def _why(cluster: Cluster, **wish: Any) -> Explanation:
    return why(cluster, Backlog(), Resources.parse(wish))


@pytest.mark.parametrize(("wish", "name", "said"), NOWHERE, ids=lambda value: value if isinstance(value, str) else "")
def test_what_no_node_has_is_named_with_what_there_is(wish: dict[str, Any], name: str, said: list[str]) -> None:
    found = _why(cluster_of(**TWO), **wish)
    assert (found.nodes, found.fitting, found.failed[name]) == (2, 0, 2 if name != "gpus_together" else 1)
    for text in said:
        assert any(option in str(found) for option in text.split("|")), str(found)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"gpus": 3}, "gpu-1 does not have 3 GPUs: it has 2. Ask for gpus=2, or start"),
        ({"gpu_memory": "80GB"}, ': the largest has 24GB. Ask for gpu_memory="24GB", or start'),
        ({"gpu_memory": "..8GB"}, ': the smallest has 15GB. Ask for gpu_memory="..15GB".'),
        ({"cpus": 64}, "64 CPU cores: it has 16. Ask for cpus=16"),
        ({"ram": "512GB"}, 'of memory: it has 64GB. Ask for ram="64GB"'),
        ({"node": "gpu-7"}, 'gpu-1 is not node="gpu-7". Ask for node="gpu-1", leave it out, or start that node.'),
        ({"exclude_nodes": ["gpu-1"]}, "exclude_nodes refuses gpu-1. Take it off, or start"),
    ],
    ids=str,
)
def test_a_single_node_is_named_once(wish: dict[str, Any], said: str) -> None:
    found = str(_why(cluster_of(**{"gpu-1": TWO["gpu-1"]}), **wish))
    assert said in found
    assert found.count("gpu-1") == (2 if "node" in wish else 1)


def test_of_a_node_that_the_job_names_it_says_what_is_in_the_way_there() -> None:
    cluster = cluster_of(a=capability(RTX_3090), b=capability(accept='owner in ["lab"]'))
    found = why(cluster, Backlog(), Resources(node="b"), applicant=Applicant("guest"))
    assert "b comes closest: only accept stands in the way." in found.sentences
    assert any(said.startswith("b does not take such a job of this owner") for said in found.sentences)
    assert found.sentences[-1] == "Smallest change: leave node out; then a fits."


def test_a_region_that_no_node_has_a_name_for() -> None:
    found = str(_why(cluster_of(a=capability(region=None)), region="eu-*"))
    assert found == "a does not have a region. Leave it out, or start a worker with --region."


def test_no_nodes_at_all() -> None:
    found = _why(Cluster(), gpus=1)
    assert found.nodes == 0
    assert "cyxwiz worker" in str(found)


def test_no_gpu_anywhere() -> None:
    found = _why(cluster_of(a=capability(), b=capability()), gpu_memory="8GB")
    assert found.failed == {"gpus": 2, "gpu_memory": 2}
    assert found.sentences == [
        'No node here has a GPU. Ask for device="cpu" and no GPU, or start a worker on a machine with one.'
    ]


def test_no_torch_anywhere() -> None:
    assert "Leave it out" in str(_why(cluster_of(a=capability(torch=None)), torch=">=2"))


def test_requirements_that_only_different_nodes_meet() -> None:
    nodes = {"a": capability(A100, cpus=4), "b": capability(cpus=64, ram="256GB", region="eu")}
    found = _why(cluster_of(**nodes), gpu_memory="40GB", cpus=32)
    assert found.failed == {"gpus": 1, "gpu_memory": 1, "cpus": 1}
    assert "no node meets all of them together" in str(found)
    assert "a comes closest: only cpus stands in the way" in str(found)
    assert "a does not have 32 CPU cores: it has 4" in str(found)


def test_a_job_that_would_start_now() -> None:
    found = _why(cluster_of(**TWO), gpus=1)
    assert (found.fitting, found.free, found.ahead) == (1, 1, 0)
    assert found.sentences == ["1 node of 2 fits (gpu-1), 1 with room now."]


def test_a_job_that_waits_for_busy_nodes() -> None:
    cluster, backlog = cluster_of(a=capability(T4, slots=2), b=capability(T4), c=capability(slots=1)), Backlog()
    cluster.set_state("b", NodeState.SUSPECT)
    for number, wish in enumerate([Resources(gpus=1), Resources(gpus=1), Resources(gpus=1)]):
        backlog.add(Waiting(f"job-{number}", number, wish, Priority.NORMAL))
    backlog.add(Waiting("urgent", 9, Resources(gpus=1), Priority.HIGH))
    assert [placement.job_id for placement in Placer(cluster, backlog).place(9)] == ["urgent"]
    found = why(cluster, backlog, job_id="job-2")
    assert found == Explanation(
        nodes=3,
        failed={"gpus": 1},
        fitting=2,
        free=0,
        silent=1,
        short={"gpus": 1},
        ahead=2,
        sentences=[
            "2 nodes of 3 fit (a, b), none with room now: too few free GPUs on 1, "
            "no sign of life from 1, which get no new work.",
            "2 jobs are in line before it; it starts when a job there ends, or on another such node: "
            "start a worker there.",
        ],
    )
    assert Explanation.model_validate_json(found.model_dump_json()) == found


def test_a_job_that_others_precede_because_they_had_less() -> None:
    cluster, backlog = cluster_of(a=capability(T4, slots=9)), Backlog()
    backlog.settle(0.0, cluster.totals)
    backlog.shares.remember([("", "ann", 0.25), ("", "bob", 0.5)])
    for number, (owner, priority) in enumerate([("bob", "high"), ("bob", "normal"), ("ann", "normal")]):
        backlog.add(Waiting(f"{owner}-{priority}", number, Resources(gpus=1), Priority(priority), owner))
    assert [placement.job_id for placement in Placer(cluster, backlog).place(9)] == ["bob-high"]
    backlog.add(Waiting("urgent", 9, Resources(gpus=1), Priority.HIGH, "bob"))
    found = why(cluster, backlog, job_id="bob-normal")
    assert (found.ahead, found.ahead_by_priority, found.ahead_by_share[0].ahead) == (2, 1, 1)
    assert found.sentences[1:] == [
        "2 jobs are in line before it; it starts when a job there ends, or on another such node: start a worker there.",
        "1 of them has a higher priority.",
        "1 of them is of others who had less of the cluster: ann (25.0% before, 0.0% now); "
        "this job is of bob (50.0% before, 100.0% now).",
    ]
    assert Explanation.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("wish", "short"),
    [
        ({}, "slots"),
        ({"gpus": 1}, "gpus"),
        ({"gpu_memory": "12GB", "shared": True}, "gpu_memory"),
        ({"cpus": 1}, "cpus"),
        ({"ram": "32GB"}, "ram"),
    ],
)
def test_what_a_busy_node_is_short_of(wish: dict[str, Any], short: str) -> None:
    cluster, backlog = cluster_of(a=capability(RTX_3090, slots=1)), Backlog()
    backlog.add(Waiting("all", 1, Resources(gpus=1, cpus=16, ram="60GB"), Priority.NORMAL))
    assert Placer(cluster, backlog).place(1)
    found = why(cluster, backlog, Resources.parse(wish))
    assert found.short == dict.fromkeys(["slots", short], 1)
    assert "It is the next in line" in str(found)


def test_nodes_with_a_cordon_get_no_new_work_and_are_named() -> None:
    cluster, backlog = cluster_of(a=capability(), b=capability(), c=capability(), d=capability()), Backlog()
    cluster.set_state("d", NodeState.SUSPECT)
    for name, cordon in (("a", Cordon.DRAINING), ("b", Cordon.QUARANTINED), ("c", Cordon.QUARANTINED)):
        cluster.set_cordon(name, cordon)
    backlog.add(Waiting("job", 1, Resources(), Priority.NORMAL))
    placer = Placer(cluster, backlog)
    assert placer.place(1) == []
    found = why(cluster, backlog, job_id="job")
    assert (found.free, found.cordoned) == (0, {"draining": 1, "quarantined": 2})
    assert "1 draining, no new work there until `cyxwiz undrain a`, 2 in quarantine after repeated faults" in str(found)
    assert "it starts when one of them takes work again" in str(found)
    cluster.set_cordon("b", None)
    assert [placement.node_id for placement in placer.place(1)] == ["b"]


def test_nodes_outside_their_hours_get_no_new_work_and_say_when_they_open() -> None:
    cluster, backlog = cluster_of(a=capability(), b=capability(slots=1), c=capability()), Backlog()
    berlin = ZoneInfo("Europe/Berlin")
    cluster.set_opening("a", datetime(2026, 6, 6, 12, tzinfo=berlin))
    cluster.set_opening("c", datetime(2026, 6, 1, 18, tzinfo=berlin))
    placer = Placer(cluster, backlog)
    for number in range(2):
        backlog.add(Waiting(f"job-{number}", number, Resources(), Priority.NORMAL))
    assert [placement.node_id for placement in placer.place(9)] == ["b"]
    found = why(cluster, backlog, job_id="job-1")
    assert (found.free, found.closed, found.short) == (0, 2, {"slots": 1})
    assert found.sentences == [
        "3 nodes of 3 fit (a, b, c), none with room now: no free slot on 1, 2 outside their hours, "
        "c opens first, Mon 18:00 (Europe/Berlin).",
        "It is the next in line: it starts when a job there ends or a node opens, or on another such node: "
        "start a worker there.",
    ]
    cluster.set_opening("c", None)
    assert [placement.node_id for placement in placer.place(9)] == ["c"]


def test_nodes_that_do_not_take_a_job_are_counted_and_say_whom_they_take() -> None:
    nodes = {
        "a": capability(accept='owner in ["lab-a", "lab-b"]'),
        "b": capability(accept="priority >= high"),
        "c": capability(RTX_3090),
    }
    guest = Applicant("guest")
    found = why(cluster_of(**nodes), Backlog(), Resources(), applicant=guest)
    assert (found.failed, found.fitting) == ({"accept": 2}, 1)
    refusing = 'a takes owner in ["lab-a", "lab-b"]; b takes priority >= high'
    assert found.sentences[1] == f"2 nodes do not take such a job: {refusing}."
    del nodes["c"]
    found = why(cluster_of(**nodes), Backlog(), Resources(), applicant=guest)
    assert found.sentences == [
        f"No node here takes such a job of this owner: {refusing}. "
        "Ask whoever runs it, or start a worker without --accept."
    ]
    found = why(cluster_of(**nodes), Backlog(), Resources(), applicant=Applicant("lab-b", priority=Priority.HIGH))
    assert (found.failed, found.free) == ({}, 2)


def test_the_node_that_comes_closest_may_be_one_that_does_not_take_it() -> None:
    nodes = {"a": capability(RTX_3090, accept='owner == "lab-a"'), "b": capability(torch=None)}
    found = why(
        cluster_of(**nodes), Backlog(), Resources.parse({"gpus": 1, "torch": ">=2"}), applicant=Applicant("guest")
    )
    assert "a comes closest: only accept stands in the way." in found.sentences
    assert 'a does not take such a job of this owner: it takes owner == "lab-a".' in str(found)


def test_a_node_in_quarantine_is_said_to_be_the_last_resort() -> None:
    cluster, backlog = cluster_of(a=capability(), b=capability()), Backlog()
    cluster.set_cordon("a", Cordon.DRAINING)
    cluster.set_cordon("b", Cordon.QUARANTINED)
    found = _why(cluster)
    assert (found.free, found.last_resort, found.cordoned) == (1, True, {"draining": 1, "quarantined": 1})
    assert "1 with room now. Though in quarantine after repeated faults, it is the last resort" in str(found)
    for number in (1, 2):
        backlog.add(Waiting(f"job-{number}", number, Resources(), Priority.NORMAL))
    assert [placement.node_id for placement in Placer(cluster, backlog).place(9)] == ["b"]
    found = why(cluster, backlog, job_id="job-2")
    assert found.free == 0
    assert "1 in quarantine after repeated faults, a last resort: one job at a time there" in str(found)
    cluster.set_cordon("b", Cordon.DRAINING)
    assert (_why(cluster).free, _why(cluster).last_resort) == (0, False)


def test_a_job_that_does_not_wait() -> None:
    with pytest.raises(NotFound, match="does not wait"):
        why(cluster_of(**TWO), Backlog(), job_id="job")


@settings(max_examples=80, deadline=None)
@given(st.lists(capabilities, min_size=1, max_size=5), requirements)
def test_there_is_always_something_to_say(nodes: list[Capability], resources: Resources) -> None:
    found = why(cluster_of(**{f"n{number}": able for number, able in enumerate(nodes)}), Backlog(), resources)
    assert found.nodes == len(nodes)
    assert all(sentence.endswith(".") for sentence in found.sentences)
    assert found.sentences
    assert (found.fitting > 0) == (found.free > 0)
    assert found.fitting > 0 or found.failed


_CHANGE = re.compile(r'Ask for (gpus|gpu_memory|cpus|ram|disk|cuda|driver|torch)="?([^ "]+?)"?[.,]( |$)')
_ODD_SIZES = st.builds(
    lambda able, ram, disk: able.model_copy(update={"ram_bytes": ram, "disk_free_bytes": disk}),
    capabilities,
    st.integers(2**20, 2**42),
    st.integers(2**20, 2**42),
)


#: what keeps a job out together, the smallest change, and how it is said
CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"gpu_memory": "80GB", "region": "us*"},
        {"gpu_memory": "24GB", "region": None},
        'ask for gpu_memory="24GB" and leave region out; then gpu-1 fits.',
    ),
    (
        {"gpus": 8, "gpu_model": "H100", "labels": {"zone": "b"}},
        {"gpus": 2, "gpu_model": None, "labels.zone": None},
        "ask for gpus=2 and leave gpu_model and labels.zone out; then gpu-1 fits.",
    ),
    ({"gpu_model": "T4", "gpu_memory": "24GB"}, {"gpu_memory": "15GB"}, 'ask for gpu_memory="15GB"; then gpu-1 fits.'),
    ({"cpus": 64, "node": "small"}, {"cpus": 4}, "ask for cpus=4; then small fits."),
    ({"gpu_memory": "8GB", "node": "small"}, {"node": None}, "leave node out; then gpu-1 fits."),
    (
        {"cuda": ">=13", "ram": "..8GB"},
        {"cuda": "12.4", "ram": "..64GB"},
        'ask for ram="..64GB" and cuda="12.4"; then gpu-1 fits.',
    ),
    ({"exclude_nodes": ["gpu-1", "small"], "cpus": 16}, {"exclude_nodes": ("small",)}, ""),
]


@pytest.mark.parametrize(("wish", "change", "said"), CHANGES, ids=lambda value: "-".join(value) if value else "")
def test_the_fewest_requirements_to_change_are_said_in_one_sentence(
    wish: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    found = _why(cluster_of(**TWO), **wish)
    assert found.change == change
    assert said in found.sentences[-1].removeprefix("Smallest change: ")


def test_what_a_hint_says_is_not_said_twice() -> None:
    found = _why(cluster_of(**TWO), gpu_memory="80GB")
    assert (found.change, len(found.sentences)) == ({"gpu_memory": "24GB"}, 1)
    assert _why(cluster_of(**TWO), gpus=1).change is None


@settings(max_examples=150, deadline=None)
@given(st.lists(capabilities, min_size=1, max_size=4), requirements)
def test_the_smallest_change_is_enough(nodes: list[Capability], resources: Resources) -> None:
    cluster = cluster_of(**{f"n{number}": able for number, able in enumerate(nodes)})
    before = why(cluster, Backlog(), resources)
    if before.change is None:
        return
    wanted = changed(resources, before.change)
    assert why(cluster, Backlog(), wanted).fitting > 0
    # Undoing any part of it is too little: nothing is changed in vain.
    for name in before.change:
        if len(before.change) > 1:
            less = {other: value for other, value in before.change.items() if other != name}
            assert why(cluster, Backlog(), changed(resources, less)).fitting == 0


@settings(max_examples=80, deadline=None)
@given(
    st.lists(_ODD_SIZES, min_size=1, max_size=4),
    requirements,
)
def test_the_change_that_a_hint_names_helps(nodes: list[Capability], resources: Resources) -> None:
    cluster = cluster_of(**{f"n{number}": able for number, able in enumerate(nodes)})
    before = why(cluster, Backlog(), resources)
    for sentence in before.sentences:
        change = _CHANGE.search(sentence)
        if change is not None and before.failed[change[1]] == len(nodes):
            value = int(change[2]) if change[1] in {"gpus", "cpus"} else change[2]
            changed = Resources.parse(resources.model_dump(exclude_defaults=True) | {change[1]: value})
            after = why(cluster, Backlog(), changed)
            assert after.failed.get(change[1], 0) < len(nodes), sentence
