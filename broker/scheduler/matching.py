"""Whether a node could ever run a job: what each requirement means, in one place.

`failures` is the specification, for one empty node. `broker.scheduler.admission` applies the same checks to all nodes
at once: texts and versions are judged once per kind of node or GPU, not once per node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from broker.scheduler.acceptance import NOBODY_REFUSES, Refused
from cyxwiz_tasks.capability import Capability, Gpu
from cyxwiz_tasks.quantities import VersionBounds, matches_name, name_pattern, parse_version
from cyxwiz_tasks.resources import LabelValue, Resources, nominal

#: Each GPU requirement is met by enough GPUs of the node, yet by too few GPUs that meet all of them.
GPUS_TOGETHER = "gpus_together"


class GpuKind(NamedTuple):
    """What of a GPU a requirement can speak of."""

    model: str
    memory_bytes: int
    compute_capability: str

    @classmethod
    def of(cls, gpu: Gpu) -> GpuKind:
        return cls(gpu.model, gpu.memory_bytes, gpu.compute_capability)


class NodeKind(NamedTuple):
    """What of a node a requirement can speak of and many nodes have in common."""

    os: str
    region: str | None
    torch: str | None
    cuda: str | None
    driver: str | None
    accept: str | None
    #: name, type and value: without the type, True, 1 and 1.0 would be one kind of node
    labels: tuple[tuple[str, str, LabelValue], ...]

    @classmethod
    def of(cls, capability: Capability) -> NodeKind:
        system = f"{capability.os} {capability.os_version}"
        labels = tuple((name, type(value).__name__, value) for name, value in sorted(capability.labels.items()))
        return cls(
            system, capability.region, capability.torch, capability.cuda, capability.driver, capability.accept, labels
        )


def gpu_checks(resources: Resources) -> dict[str, Callable[[GpuKind], bool]]:
    """The requirements on each GPU that are set, by name."""
    checks: dict[str, Callable[[GpuKind], bool]] = {}
    if resources.gpu_memory is not None:
        memory = resources.gpu_memory_bytes
        low, high = nominal(memory.min_bytes), memory.max_bytes
        checks["gpu_memory"] = lambda gpu: low <= gpu.memory_bytes and (high is None or gpu.memory_bytes <= high)
    if (model := resources.gpu_model) is not None:
        checks["gpu_model"] = lambda gpu: matches_name(model, gpu.model)
    if (wanted := resources.compute_capability) is not None:
        checks["compute_capability"] = lambda gpu: _version_holds(wanted, gpu.compute_capability)
    return checks


def kind_checks(resources: Resources, refused: Refused = NOBODY_REFUSES) -> dict[str, Callable[[NodeKind], bool]]:
    """The requirements on what nodes have in common that are set, by name; each label is one of its own.

    The nodes' own conditions are one of them, `accept`: `refused` are those that do not hold for the job.
    """
    checks: dict[str, Callable[[NodeKind], bool]] = {}
    if refused:
        checks["accept"] = lambda node: node.accept not in refused
    if (cuda := resources.cuda) is not None:
        checks["cuda"] = lambda node: _version_holds(cuda, node.cuda)
    if (driver := resources.driver) is not None:
        checks["driver"] = lambda node: _version_holds(driver, node.driver)
    if (torch := resources.torch) is not None:
        checks["torch"] = lambda node: _version_holds(torch, node.torch)
    if (system := resources.os) is not None:
        checks["os"] = lambda node: matches_name(system, node.os)
    if (region := resources.region) is not None:
        checks["region"] = lambda node: node.region is not None and matches_name(region, node.region)
    for key, value in resources.labels.items():
        checks[f"labels.{key}"] = _label_check(key, value)
    return checks


def failures(
    resources: Resources, node_id: str, name: str, capability: Capability, refused: Refused = NOBODY_REFUSES
) -> list[str]:
    """Names of the requirements that a node does not meet even while it runs nothing; empty: the job fits it."""
    gpus = [GpuKind.of(gpu) for gpu in capability.gpus]
    on_gpu = gpu_checks(resources)
    failed = ["gpus"] if len(gpus) < resources.gpus else []
    failed += [field for field, holds in on_gpu.items() if sum(map(holds, gpus)) < resources.gpus]
    if not failed and sum(all(holds(gpu) for holds in on_gpu.values()) for gpu in gpus) < resources.gpus:
        failed.append(GPUS_TOGETHER)
    if capability.cpu_cores < resources.cpus:
        failed.append("cpus")
    ram, disk = resources.ram_bytes, resources.disk_bytes
    if capability.ram_bytes < nominal(ram.min_bytes) or _above(capability.ram_bytes, ram.max_bytes):
        failed.append("ram")
    if capability.disk_free_bytes < disk.min_bytes or _above(capability.disk_free_bytes, disk.max_bytes):
        failed.append("disk")
    kind = NodeKind.of(capability)
    failed += [field for field, holds in kind_checks(resources, refused).items() if not holds(kind)]
    if resources.node is not None and not is_named(resources.node, node_id, name):
        failed.append("node")
    if is_excluded(resources.exclude_nodes, node_id, name):
        failed.append("exclude_nodes")
    return failed


def is_named(pattern: str, node_id: str, name: str) -> bool:
    """Whether the whole name or the whole id of a node is what the pattern says: "gpu-1" is not "gpu-1-b"."""
    found = name_pattern(pattern)
    return bool(found.fullmatch(name) or found.fullmatch(node_id))


def is_excluded(excluded: tuple[str, ...], node_id: str, name: str) -> bool:
    """Whether a node's name (in any case) or id is among those that a job refuses."""
    return any(entry == node_id or entry.casefold() == name.casefold() for entry in excluded)


def _above(size_bytes: int, limit_bytes: int | None) -> bool:
    return limit_bytes is not None and size_bytes > limit_bytes


def _version_holds(bounds: str, version: str | None) -> bool:
    """An unknown version meets no bound: a job must not find out on the node."""
    try:
        return version is not None and VersionBounds.parse(bounds).admits(parse_version(version))
    except ValueError:
        return False


def _label_check(key: str, wanted: LabelValue) -> Callable[[NodeKind], bool]:
    if isinstance(wanted, str):
        return lambda node: any(_text_holds(wanted, value) for name, _, value in node.labels if name == key)
    return lambda node: any(
        value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
        for name, _, value in node.labels
        if name == key
    )


def _text_holds(wanted: str, value: LabelValue) -> bool:
    """A pattern for the whole value. A text that is no pattern ("", "a|") must be equal."""
    try:
        return name_pattern(wanted).fullmatch(str(value)) is not None
    except ValueError:
        return wanted == value
