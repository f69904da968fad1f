"""One sentence for each requirement that no node meets: what there is instead, and the smallest change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil, floor
from typing import NamedTuple

from broker.scheduler.matching import GPUS_TOGETHER, gpu_checks
from broker.scheduler.node import Node
from cyxwiz_tasks.quantities import SizeRange, Version, parse_version, show_size
from cyxwiz_tasks.resources import Resources

_SHOWN = 6


class _Asked(NamedTuple):
    """`nodes` are all that there are, or the single one that comes closest."""

    resources: Resources
    nodes: list[Node]
    name: str

    @property
    def nobody(self) -> str:
        return f"{self.nodes[0].name} does not have" if self.is_one else "No node here has"

    @property
    def is_one(self) -> bool:
        return len(self.nodes) == 1

    def has(self, name: str, most: str = "") -> str:
        """Of all nodes, which one has `most`; of a single one there is no need for its name again."""
        return "it has" if self.is_one else f"{name} has{most}"


def hint(name: str, nodes: Iterable[Node], resources: Resources, only: Node | None = None) -> str:
    """The sentences for one requirement, by its name in `matching.failures`; `only`: speak of this node alone."""
    asked = _Asked(resources, [only] if only is not None else list(nodes), name)
    if name.startswith("labels."):
        return _label(asked)
    return _SENTENCES[name](asked)


def _gpus(asked: _Asked) -> str:
    most = max(asked.nodes, key=lambda node: len(node.gpu_indexes))
    has = len(most.gpu_indexes)
    if has == 0:
        return f'{asked.nobody} a GPU. Ask for device="cpu" and no GPU, or start a worker on a machine with one.'
    return (
        f"{asked.nobody} {asked.resources.gpus} GPUs: {asked.has(most.name)} {has}. "
        f"Ask for gpus={has}, or start a worker on a bigger machine."
    )


def _gpu_memory(asked: _Asked) -> str:
    """The n-th largest (or smallest) GPU of a node decides whether n of them are enough."""
    wanted, limits = asked.resources.gpus, asked.resources.gpu_memory_bytes
    cards = "a GPU" if wanted == 1 else f"{wanted} GPUs"
    able = [node for node in asked.nodes if len(node.gpu_memory) >= wanted]
    if not able:
        return f'{asked.nobody} {cards} with gpu_memory="{asked.resources.gpu_memory}". Ask for fewer GPUs.'
    best = max(able, key=lambda node: sorted(node.gpu_memory)[-wanted])
    largest = sorted(best.gpu_memory)[-wanted]
    said = f'{asked.nobody} {cards} with gpu_memory="{asked.resources.gpu_memory}"'
    if largest < limits.min_bytes:
        size = show_size(largest)
        change = f'Ask for gpu_memory="{size}", or start a worker on a machine with a larger GPU.'
        return f"{said}: the largest has {size}{'' if asked.is_one else f', on {best.name}'}. {change}"
    least = min(able, key=lambda node: sorted(node.gpu_memory)[wanted - 1])
    size = show_size(rounded(sorted(least.gpu_memory)[wanted - 1], ceil))
    where = "" if asked.is_one else f", on {least.name}"
    return f'{said}: the smallest has {size}{where}. Ask for gpu_memory="..{size}".'


def rounded(size_bytes: int, to_whole: Callable[[float], int]) -> int:
    """To a tenth of its unit, so that the text that `show_size` makes of it errs on the side of `to_whole`."""
    tenth = next((unit for unit in (2**40, 2**30, 2**20, 2**10) if size_bytes >= unit), 10) / 10
    return int(to_whole(size_bytes / tenth) * tenth)


def _gpu_model(asked: _Asked) -> str:
    there = _distinct(gpu.model for node in asked.nodes for gpu in node.capability.gpus)
    return (
        f'{asked.nobody} {_cards(asked)} gpu_model="{asked.resources.gpu_model}": there {_are(there)}. {_one_of(asked)}'
    )


def _compute_capability(asked: _Asked) -> str:
    there = _distinct(gpu.compute_capability for node in asked.nodes for gpu in node.capability.gpus)
    wanted = asked.resources.compute_capability
    return f'{asked.nobody} {_cards(asked)} compute_capability="{wanted}": there {_are(there)}. {_one_of(asked)}'


def _gpus_together(asked: _Asked) -> str:
    fields = " and ".join(gpu_checks(asked.resources))
    kinds = _distinct(
        f"{gpu.model} ({show_size(gpu.memory_bytes)}, {gpu.compute_capability})"
        for node in asked.nodes
        for gpu in node.capability.gpus
    )
    return (
        f"{asked.nobody} {_cards(asked)} {fields} at the same time: there {_are(kinds)}. "
        "Loosen one of them so that one kind of GPU meets all."
    )


def _version(asked: _Asked) -> str:
    known = [version for node in asked.nodes if (version := _known(getattr(node.capability, asked.name)))]
    wanted = getattr(asked.resources, asked.name)
    if not known:
        return f'{asked.nobody} a known {asked.name} version, so {asked.name}="{wanted}" cannot hold. Leave it out.'
    unknown = len(asked.nodes) - len(known)
    said = f'{asked.nobody} {asked.name} "{wanted}": there {_are([_dotted(version) for version in sorted(set(known))])}'
    return (
        f"{said}{f' ({unknown} without a known version)' if unknown else ''}. "
        f'Ask for {asked.name}="{_dotted(max(known))}", or update it on a node and restart its worker.'
    )


def _known(text: str | None) -> Version | None:
    try:
        return parse_version(text) if text is not None else None
    except ValueError:
        return None


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _place(asked: _Asked) -> str:
    """Operating system and region."""
    has = [
        node.capability.region if asked.name == "region" else f"{node.capability.os} {node.capability.os_version}"
        for node in asked.nodes
    ]
    there = _distinct(value for value in has if value is not None)
    wanted = getattr(asked.resources, asked.name)
    if not there:
        return f"{asked.nobody} a {asked.name}. Leave it out, or start a worker with --{asked.name}."
    return f'{asked.nobody} {asked.name} "{wanted}": there {_are(there)}. {_one_of(asked)}'


def _amount(asked: _Asked) -> str:
    """Memory and disk."""
    ram = asked.name == "ram"
    wanted: SizeRange = asked.resources.ram_bytes if ram else asked.resources.disk_bytes
    sizes = {node.name: node.capability.ram_bytes if ram else node.capability.disk_free_bytes for node in asked.nodes}
    most, least = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
    what = "memory" if ram else "free disk space"
    said = f'{asked.nobody} {asked.name}="{getattr(asked.resources, asked.name)}" of {what}'
    if sizes[most] < wanted.min_bytes:
        size = show_size(rounded(sizes[most], floor))
        change = f'Ask for {asked.name}="{size}", or start a worker on a bigger machine.'
        return f"{said}: {asked.has(most, ' most,')} {size}. {change}"
    size = show_size(rounded(sizes[least], ceil))
    return f'{said}: {asked.has(least, " least,")} {size}. Ask for {asked.name}="..{size}".'


def _cpus(asked: _Asked) -> str:
    most = max(asked.nodes, key=lambda node: node.capability.cpu_cores)
    has = most.capability.cpu_cores
    return (
        f"{asked.nobody} {asked.resources.cpus} CPU cores: {asked.has(most.name)} {has}. "
        f"Ask for cpus={has}, or start a worker on a bigger machine."
    )


def _node(asked: _Asked) -> str:
    if asked.is_one:
        name = asked.nodes[0].name
        return f'{name} is not node="{asked.resources.node}". Ask for node="{name}", leave it out, or start that node.'
    there = _distinct(node.name for node in asked.nodes)
    return f'node="{asked.resources.node}" is the name or id of none of them: there {_are(there)}. {_one_of(asked)}'


def _excluded(asked: _Asked) -> str:
    there = _distinct(node.name for node in asked.nodes)
    off = "Take it off" if len(there) == 1 else "Take one of them off"
    return f"exclude_nodes refuses {', '.join(there)}. {off}, or start a worker on another machine."


def _label(asked: _Asked) -> str:
    key = asked.name.removeprefix("labels.")
    there = _distinct(f"{node.capability.labels[key]}" for node in asked.nodes if key in node.capability.labels)
    wanted = f"{key}={asked.resources.labels[key]}"
    if not there:
        return f"{asked.nobody} the label {key}. Leave it out, or start a worker with --label {wanted}."
    return f"{asked.nobody} the label {wanted}: there {_are(there)}. {_one_of(asked)}"


def _cards(asked: _Asked) -> str:
    return "a GPU with" if asked.resources.gpus == 1 else f"{asked.resources.gpus} GPUs with"


def _one_of(asked: _Asked) -> str:
    return "Ask for one of these, or start a worker where there is another."


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def _are(there: list[str]) -> str:
    if not there:
        return "is none"
    shown = ", ".join(there[:_SHOWN]) + (f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else "")
    return f"{'is' if len(there) == 1 else 'are'} {shown}"


def _accept(asked: _Asked) -> str:
    if asked.is_one:
        [node] = asked.nodes
        said = f"{node.name} does not take such a job of this owner: it takes {node.capability.accept}"
    else:
        said = f"No node here takes such a job of this owner: {whom_they_take(asked.nodes)}"
    return f"{said}. Ask whoever runs it, or start a worker without --accept."


def whom_they_take(nodes: Iterable[Node]) -> str:
    """The conditions of nodes that have one."""
    taking = _distinct(f"{node.name} takes {node.capability.accept}" for node in nodes if node.capability.accept)
    return "; ".join(taking[:_SHOWN]) + (f"; and {len(taking) - _SHOWN} more" if len(taking) > _SHOWN else "")


_SENTENCES: dict[str, Callable[[_Asked], str]] = {
    "gpus": _gpus,
    "gpu_memory": _gpu_memory,
    "gpu_model": _gpu_model,
    "compute_capability": _compute_capability,
    GPUS_TOGETHER: _gpus_together,
    "cuda": _version,
    "driver": _version,
    "torch": _version,
    "os": _place,
    "region": _place,
    "ram": _amount,
    "disk": _amount,
    "accept": _accept,
    "cpus": _cpus,
    "node": _node,
    "exclude_nodes": _excluded,
}
