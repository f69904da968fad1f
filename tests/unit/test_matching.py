"""What each requirement means, and that the filter over all nodes says the same as the one for one node."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.scheduler.admission import Admission
from broker.scheduler.cluster import MAX_GPUS, Cluster
from broker.scheduler.matching import failures
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.errors import InvalidJob, InvalidSettings
from cyxwiz_tasks.resources import Resources
from tests.property_size import examples
from tests.unit.fleet import A100, RTX_3090, RTX_4090, T4, capabilities, capability, requirements

EVERY = capability(
    A100,
    RTX_3090,
    cuda="12.8",
    driver="570.86",
    region="eu-west",
    labels={"tier": "gold-plus", "nvme": True, "rack": 7},
)

FITS: list[dict[str, Any]] = [
    {},
    {"gpus": 2},
    {"device": "cuda"},
    {"device": "cpu"},
    {"gpu_memory": "80GB"},
    {"gpu_memory": "..24GB"},
    {"gpu_memory": "24GB..80GB", "gpus": 2},
    # 84GB x 0.93 = 78.1GB: a card that is sold with a little more memory than it reports
    {"gpu_memory": "84GB"},
    {"gpu_model": "A100*"},
    {"gpu_model": "H100|RTX 3090"},
    {"compute_capability": ">=8.0,<8.6"},
    {"compute_capability": "8.6", "gpu_memory": "24GB"},
    {"cuda": ">=12.4", "driver": ">=570"},
    {"cuda": "==12"},
    {"torch": ">=2.13,<3"},
    {"cpus": 16, "ram": "68GB", "disk": "500GB"},
    {"ram": "32GB..64GB"},
    {"os": "linux"},
    {"os": "Debian*"},
    {"region": "eu*"},
    {"labels": {"tier": "gold*", "nvme": True, "rack": 7}},
    {"labels": {"rack": "7|8"}},
    {"node": "gpu-1"},
    {"node": "id-*"},
    {"node": "gpu-9|gpu-1"},
    {"exclude_nodes": ["gpu-2", "gpu"]},
]
MISFITS: list[tuple[dict[str, Any], list[str]]] = [
    ({"gpus": 3}, ["gpus"]),
    ({"gpu_memory": "90GB"}, ["gpu_memory"]),
    ({"gpu_memory": "..20GB"}, ["gpu_memory"]),
    ({"gpu_memory": "80GB", "gpus": 2}, ["gpu_memory"]),
    ({"gpu_model": "A10"}, ["gpu_model"]),
    ({"compute_capability": ">=8.9"}, ["compute_capability"]),
    ({"compute_capability": "8.6", "gpu_memory": "80GB"}, ["gpus_together"]),
    ({"gpu_model": "A100*", "gpu_memory": "..24GB"}, ["gpus_together"]),
    ({"cuda": ">=13"}, ["cuda"]),
    ({"driver": "<570"}, ["driver"]),
    ({"torch": "==2.12"}, ["torch"]),
    ({"cpus": 17}, ["cpus"]),
    ({"ram": "72GB"}, ["ram"]),
    ({"ram": "..32GB"}, ["ram"]),
    ({"disk": "501GB"}, ["disk"]),
    ({"disk": "..100GB"}, ["disk"]),
    ({"os": "Windows"}, ["os"]),
    ({"region": "us*"}, ["region"]),
    # a label's value is matched as a whole
    ({"labels": {"tier": "gold"}}, ["labels.tier"]),
    ({"labels": {"nvme": 1}}, ["labels.nvme"]),
    ({"labels": {"zone": "a"}}, ["labels.zone"]),
    ({"node": "gpu"}, ["node"]),
    ({"exclude_nodes": ["GPU-1"]}, ["exclude_nodes"]),
    ({"exclude_nodes": ["id-1"]}, ["exclude_nodes"]),
    ({"cpus": 99, "region": "us*", "gpus": 9}, ["gpus", "cpus", "region"]),
]


def _failed(able: Capability, wish: dict[str, Any]) -> list[str]:
    return failures(Resources.parse(wish), "id-1", "gpu-1", able)


@pytest.mark.parametrize("wish", FITS, ids=str)
def test_requirement_is_met(wish: dict[str, Any]) -> None:
    assert _failed(EVERY, wish) == []


@pytest.mark.parametrize(("wish", "names"), MISFITS, ids=str)
def test_requirement_that_is_not_met_is_named(wish: dict[str, Any], names: list[str]) -> None:
    assert _failed(EVERY, wish) == names


@pytest.mark.parametrize("field", ["cuda", "driver", "torch"])
def test_an_unknown_version_meets_no_bound(field: str) -> None:
    assert _failed(capability(torch=None), {field: "<999"}) == [field]
    unreadable: dict[str, Any] = {field: "n/a"}
    assert _failed(capability(**unreadable), {field: "<999"}) == [field]


def test_a_node_without_gpus_fails_every_requirement_on_a_gpu() -> None:
    assert _failed(capability(), {"gpu_memory": "1GB"}) == ["gpus", "gpu_memory"]
    assert _failed(capability(), {"device": "cpu"}) == []


def test_a_card_sold_as_24_gb_that_reports_less_is_one() -> None:
    assert _failed(capability(RTX_4090), {"gpu_memory": "24GB"}) == []
    assert _failed(capability(("L4", "22.4GB", "8.9")), {"gpu_memory": "24GB"}) == []
    assert _failed(capability(("L4", "22.2GB", "8.9")), {"gpu_memory": "24GB"}) == ["gpu_memory"]


def test_a_node_that_claims_too_many_gpus_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=f"up to {MAX_GPUS}"):
        Cluster().upsert_node("a", "a", capability(*[T4] * (MAX_GPUS + 1)), "1")


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(capabilities, min_size=1, max_size=5), requirements, st.sampled_from(["ann", "bob"]))
def test_the_filter_over_all_nodes_says_what_the_one_for_one_node_says(
    nodes: list[Capability], resources: Resources, owner: str
) -> None:
    cluster = Cluster()
    for number, able in enumerate(nodes):
        cluster.upsert_node(f"id-{number}", f"n{number}", able, "1")
    rows = np.arange(len(nodes), dtype=np.int32)
    refused = cluster.refusing(resources, Applicant(owner))
    admission = Admission(resources, refused)
    admitted = admission.gpus(cluster.columns, rows)
    by_name = admission.failures(cluster, rows, admitted)
    fits = admission.nodes(cluster, rows, admitted)
    for row, able in enumerate(nodes):
        expected = failures(resources, f"id-{row}", f"n{row}", able, refused)
        assert {name for name, mask in by_name.items() if mask[row]} == set(expected)
        assert bool(fits[row]) == (not expected)


@given(requirements)
def test_requirements_come_back_out_of_their_shape(resources: Resources) -> None:
    found = Resources.of_shape(resources.shape)
    assert found == resources
    # Python calls True and 1 equal.
    assert found.shape == resources.shape


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_label_is_no_number_that_a_shape_could_not_hold(number: float) -> None:
    with pytest.raises(InvalidJob, match=r'^resources\.labels: the value of "score" is .* write a finite number'):
        Resources.parse({"labels": {"score": number}})


def test_equal_requirements_are_one_shape_in_whatever_order_they_were_written() -> None:
    first = Resources.parse({"labels": {"rack": "b2", "tier": "gold"}, "exclude_nodes": ["n2", "n1"], "cpus": 2})
    second = Resources.parse({"cpus": 2, "exclude_nodes": ["n1", "n2", "n1"], "labels": {"tier": "gold", "rack": "b2"}})
    assert first == second
    assert first.shape == second.shape
    assert first.shape != Resources.parse({"labels": {"rack": "b2", "tier": "gold"}, "cpus": 2}).shape


def test_labels_that_python_calls_equal_are_told_apart() -> None:
    cluster = Cluster()
    for name, value in {"one": 1, "true": True, "float": 1.0}.items():
        cluster.upsert_node(name, name, capability(labels={"nvme": value}), "1")
    rows = np.arange(3, dtype=np.int32)
    for wanted, expected in ((True, [False, True, False]), (1, [True, False, True]), ("1.0", [False, False, True])):
        admission = Admission(Resources(labels={"nvme": wanted}))
        assert admission.nodes(cluster, rows, admission.gpus(cluster.columns, rows)).tolist() == expected


def test_kinds_that_appear_later_are_judged_too() -> None:
    cluster, admission = Cluster(), Admission(Resources.parse({"gpu_model": "A100*", "torch": ">=2"}))
    for number, able in enumerate([capability(T4), capability(A100), capability(A100, torch="1.13")]):
        cluster.upsert_node(f"n{number}", f"n{number}", able, "1")
        rows = np.arange(number + 1, dtype=np.int32)
        fits = admission.nodes(cluster, rows, admission.gpus(cluster.columns, rows))
    assert fits.tolist() == [False, True, False]
