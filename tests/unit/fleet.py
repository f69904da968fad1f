"""Nodes for the scheduler's unit tests: written out, and random ones for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from broker.scheduler.cluster import Cluster
from cyxwiz_tasks.capability import Capability, Gpu
from cyxwiz_tasks.quantities import parse_size
from cyxwiz_tasks.resources import Resources

T4 = ("Tesla T4", "15GB", "7.5")
RTX_3090 = ("NVIDIA GeForce RTX 3090", "24GB", "8.6")
RTX_4090 = ("NVIDIA GeForce RTX 4090", "23.99GB", "8.9")
A100 = ("NVIDIA A100-SXM4-80GB", "80GB", "8.0")
Card = tuple[str, str, str]


def capability(*cards: Card, slots: int = 4, cpus: int = 16, ram: str = "64GB", **fields: Any) -> Capability:
    gpus = [
        Gpu(index=at, uuid=f"GPU-{at}", model=model, memory_bytes=parse_size(memory), compute_capability=compute)
        for at, (model, memory, compute) in enumerate(cards)
    ]
    given = {
        "hostname": "host",
        "os": "Linux",
        "os_version": "Debian GNU/Linux 12 (bookworm)",
        "architecture": "x86_64",
        "python": "3.11.7",
        "cyxwiz": "0.1",
        "cpu_model": "AMD EPYC 7763",
        "cpu_cores": cpus,
        "ram_bytes": parse_size(ram),
        "disk_bytes": parse_size("1TB"),
        "disk_free_bytes": parse_size("500GB"),
        "torch": "2.13.0+cu130",
        "slots": slots,
        "gpus": gpus,
    }
    return Capability.model_validate(given | fields)


def cluster_of(**nodes: Capability) -> Cluster:
    """A cluster whose nodes' ids are their names."""
    cluster = Cluster()
    for name, able in nodes.items():
        cluster.upsert_node(name, name, able, "1")
    return cluster


cards = st.lists(st.sampled_from([T4, RTX_3090, RTX_4090, A100]), max_size=4)
capabilities = st.builds(
    lambda cards, **fields: capability(*cards, **fields),
    cards,
    slots=st.integers(1, 4),
    cpus=st.integers(1, 8),
    ram=st.sampled_from(["8GB", "15.5GB", "64GB"]),
    disk_free_bytes=st.sampled_from([0, 10 * 2**30, 500 * 2**30]),
    torch=st.sampled_from([None, "2.11.0", "2.13.0+cpu", "unknown"]),
    cuda=st.sampled_from([None, "12.4", "13.0"]),
    driver=st.sampled_from([None, "550.54.15", "580.65"]),
    region=st.sampled_from([None, "eu-west", "us-east"]),
    os_version=st.sampled_from(["Debian GNU/Linux 12 (bookworm)", "Ubuntu 24.04"]),
    labels=st.dictionaries(st.sampled_from(["tier", "nvme"]), st.sampled_from(["gold", "silver", 1, True, 2.5])),
    accept=st.sampled_from([None, None, None, 'owner != "bob"', 'owner in ["", "ann"] or project == "x" and gpus > 0']),
)
_sizes = st.sampled_from(["12GB", "16GB..24GB", "24GB", "..24GB", "40GB..", "80GB"])


def _preferences(*texts: str) -> st.SearchStrategy[dict[str, float]]:
    return st.dictionaries(st.sampled_from(texts), st.sampled_from([1, 2, 0.5]), min_size=1)


_node_preferences = (
    "region=eu*",
    "labels.tier=gold|1",
    "node=n1|n3",
    "torch>=2.12",
    "cpus=4",
    "disk=100GB",
    "os=Ubuntu",
)
_gpu_preferences = ("gpu_model=RTX*|T4", "gpu_memory=24GB..", "compute_capability>=8.6")
_policies = st.sampled_from(["spread", "pack", "balanced"])
_gpu_wishes: dict[str, st.SearchStrategy[Any]] = {
    "gpus": st.integers(1, 4),
    "gpu_memory": _sizes,
    "gpu_model": st.sampled_from(["A100", "RTX*", "T4|A10*", "H100"]),
    "compute_capability": st.sampled_from([">=8.0", ">=8.0,<8.9", "==8.6", "9.0"]),
}
_other_wishes: dict[str, st.SearchStrategy[Any]] = {
    "cpus": st.integers(0, 8),
    "ram": st.sampled_from(["2GB", "16GB", "..16GB", "32GB..128GB"]),
    "disk": st.sampled_from(["1GB", "100GB..", "..20GB"]),
    "torch": st.sampled_from([">=2.12", "<2.12"]),
    "cuda": st.sampled_from([">=12.8", "==12"]),
    "driver": st.sampled_from([">=570"]),
    "os": st.sampled_from(["Linux", "Ubuntu", "Windows"]),
    "region": st.sampled_from(["eu*", "us-east", "eu-west|us-east"]),
    "labels": st.dictionaries(st.sampled_from(["tier", "nvme"]), st.sampled_from(["gold", "g*|s*", 1, True, 2.5, ""])),
    "node": st.sampled_from(["n0", "n1|n2", "n*", "elsewhere"]),
    "placement": _policies,
    "prefer": _preferences(*_node_preferences),
    "exclude_nodes": st.lists(st.sampled_from(["n0", "N1", "n2"]), max_size=2),
}
requirements = st.one_of(
    st.fixed_dictionaries({}, optional=_other_wishes | {"device": st.just("cpu")}),
    st.fixed_dictionaries({}, optional=_gpu_wishes | _other_wishes),
    st.fixed_dictionaries(
        {"gpu_memory": _sizes, "shared": st.just(True)},
        optional={name: wish for name, wish in (_gpu_wishes | _other_wishes).items() if name != "gpu_memory"},
    ),
    st.fixed_dictionaries(
        {"gpus": _gpu_wishes["gpus"], "prefer": _preferences(*_node_preferences, *_gpu_preferences)},
        optional={name: _gpu_wishes[name] for name in ("gpu_memory", "gpu_model")} | {"placement": _policies},
    ),
).map(Resources.parse)
#: requirements that most nodes meet, so that nodes fill up
light_requirements = st.one_of(
    st.fixed_dictionaries({"cpus": st.integers(0, 4)}, optional={"placement": _policies}),
    st.fixed_dictionaries({"gpus": st.integers(1, 2), "ram": st.sampled_from(["1GB", "7GB"])}),
    st.fixed_dictionaries({"gpu_memory": st.sampled_from(["6GB", "12GB", "..24GB"]), "shared": st.just(True)}),
    st.fixed_dictionaries(
        {
            "gpu_memory": st.just("6GB"),
            "shared": st.just(True),
            "prefer": _preferences("node=n1|n3", *_gpu_preferences),
        },
        optional={"placement": _policies},
    ),
    st.fixed_dictionaries(
        {"gpus": st.integers(1, 2), "prefer": _preferences(*_node_preferences, *_gpu_preferences)},
        optional={"placement": _policies},
    ),
    st.fixed_dictionaries({"gpu_memory": st.just("20GB"), "gpus": st.integers(1, 3)}),
).map(Resources.parse)
