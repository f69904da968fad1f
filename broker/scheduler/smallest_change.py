"""The fewest requirements to change so that some node could run a job that none can run as it is.

On one node it is clear which requirements stand in the way, but for those on GPUs: which of these to change depends on
which GPUs are left then, so all sets of them are tried, the smallest first. A limited number of nodes is looked at,
those with the fewest failures. What a node's owner refuses, no job can change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from math import ceil, floor
from typing import Any, NamedTuple

from broker.scheduler.acceptance import Refused
from broker.scheduler.hints import rounded
from broker.scheduler.matching import GPUS_TOGETHER, GpuKind, failures, gpu_checks, is_excluded
from broker.scheduler.node import Node
from cyxwiz_tasks.quantities import SizeRange, parse_version, show_size
from cyxwiz_tasks.resources import Resources

#: nodes that are tried
NODES = 16
_OF_GPUS = ("gpu_memory", "gpu_model", "compute_capability", "gpus")


class Change(NamedTuple):
    """`fields`: new values by the names of requirements; None: leave it out."""

    node: str
    fields: dict[str, Any]

    def is_said(self, nowhere: list[str], hint: str) -> bool:
        """Whether it is what the hint says on the one requirement that no node meets."""
        [(name, value), *more] = self.fields.items()
        return not more and nowhere == [name] and (value is None or f"{name}={_written(value)}" in hint)

    def __str__(self) -> str:
        asked = [f"{name}={_written(value)}" for name, value in self.fields.items() if value is not None]
        left = [name for name, value in self.fields.items() if value is None]
        parts = [f"ask for {_and(asked)}"] if asked else []
        parts += [f"leave {_and(left)} out"] if left else []
        return f"Smallest change: {' and '.join(parts)}; then {self.node} fits."


def smallest_change(resources: Resources, nodes: Iterable[Node], refused: Refused) -> Change | None:
    """The change of the fewest requirements after which one of these nodes fits; None: no such change is known."""
    found = [change for node in nodes if (change := _on(node, resources, refused)) is not None]
    return min(found, key=lambda change: (len(change.fields), _left_out(change)), default=None)


def changed(resources: Resources, fields: dict[str, Any]) -> Resources:
    """The requirements after a change."""
    wanted = resources.model_dump(exclude_defaults=True)
    for name, value in fields.items():
        if name.startswith("labels."):
            wanted["labels"] = {key: text for key, text in wanted["labels"].items() if f"labels.{key}" != name}
        elif value is None:
            wanted.pop(name, None)
        else:
            wanted[name] = value
    # Who asks for a kind of GPU asks for one, and still does.
    return Resources.parse(wanted | ({"gpus": wanted.get("gpus") or resources.gpus} if resources.gpus else {}))


def _left_out(change: Change) -> int:
    return sum(value is None for value in change.fields.values())


def _on(node: Node, resources: Resources, refused: Refused) -> Change | None:
    def lacks(wanted: Resources) -> list[str]:
        return failures(wanted, node.node_id, node.name, node.capability, refused)

    failed = lacks(resources)
    if "accept" in failed:
        return None
    fields = {name: _value(name, node, resources) for name in failed if name not in _OF_GPUS and name != GPUS_TOGETHER}
    for of_gpus in _gpu_changes(node, resources):
        try:
            wanted = changed(resources, fields | of_gpus)
        except ValueError:
            continue  # such as a preference that speaks of a requirement which is gone
        if not lacks(wanted):
            return Change(node.name, of_gpus | fields)
    return None


def _value(name: str, node: Node, resources: Resources) -> Any:
    """What to write in the place of a requirement that a node does not meet; None: leave it out."""
    able = node.capability
    if name == "cpus":
        return able.cpu_cores or None
    if name in ("ram", "disk"):
        has = able.ram_bytes if name == "ram" else able.disk_free_bytes
        return _size(has, resources.ram_bytes if name == "ram" else resources.disk_bytes)
    if name in ("cuda", "driver", "torch"):
        return _version(getattr(able, name))
    if name == "exclude_nodes":
        return tuple(one for one in resources.exclude_nodes if not is_excluded((one,), node.node_id, node.name)) or None
    return None


def _size(has: int, wanted: SizeRange) -> str | None:
    if has < wanted.min_bytes:
        return show_size(rounded(has, floor)) if has else None
    return f"..{show_size(rounded(has, ceil))}"


def _version(text: str | None) -> str | None:
    try:
        return ".".join(map(str, parse_version(text))) if text is not None else None
    except ValueError:
        return None


def _gpu_changes(node: Node, resources: Resources) -> Iterator[dict[str, Any]]:
    """Changes of requirements on GPUs that could let a node fit, of the fewest first."""
    yield {}
    checks = gpu_checks(resources)
    names = [name for name in _OF_GPUS if name in checks or (name == "gpus" and resources.gpus > 1)]
    for count in range(1, len(names) + 1):
        for chosen in combinations(names, count):
            left = [holds for name, holds in checks.items() if name not in chosen]
            cards = [gpu for gpu in node.capability.gpus if all(holds(GpuKind.of(gpu)) for holds in left)]
            wanted = len(cards) if "gpus" in chosen else resources.gpus
            if not 0 < wanted <= len(cards):
                continue
            fields: dict[str, Any] = dict.fromkeys(chosen)
            if "gpus" in chosen:
                fields["gpus"] = wanted
            if "gpu_memory" in chosen:
                sizes = sorted(gpu.memory_bytes for gpu in cards)
                is_low = sizes[-wanted] < resources.gpu_memory_bytes.min_bytes
                fields["gpu_memory"] = _size(
                    sizes[-wanted] if is_low else sizes[wanted - 1], resources.gpu_memory_bytes
                )
            yield fields


def _written(value: Any) -> str:
    return str(value) if isinstance(value, int | tuple) else f'"{value}"'


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
