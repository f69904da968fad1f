"""Whose jobs nodes take, by the conditions that they were started with (`cyxwiz_tasks.conditions`).

A node's condition is a text that many nodes have in common. What matters of a job is which of these texts refuse it:
jobs of equal requirements that are refused by the same ones fit the same nodes, whoever owns them.
"""

from __future__ import annotations

from collections.abc import Iterable

from cyxwiz_tasks.capability import Capability, Gpu
from cyxwiz_tasks.conditions import Applicant, Condition
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.resources import Resources

#: texts of conditions
Refused = frozenset[str]
NOBODY_REFUSES: Refused = frozenset()


def refused_by(conditions: Iterable[str], resources: Resources, applicant: Applicant) -> Refused:
    """Those of the conditions that do not hold for a job."""
    return frozenset(text for text in conditions if not _holds(text, resources, applicant))


#: far beyond any machine, and what the columns of the record and of `Columns` hold; network disks that grow as they are
#: filled say that they have almost 2**63 bytes
_MOST = {
    "slots": 2**31 - 1,
    "cpu_cores": 2**31 - 1,
    "ram_bytes": 2**60,
    "disk_bytes": 2**63 - 1,
    "disk_free_bytes": 2**63 - 1,
}
_MOST_OF_GPU = {"index": 2**15 - 1, "memory_bytes": 2**50}


def check(capability: Capability) -> None:
    """Raises InvalidSettings for a number that no node has, and for a condition that cannot be read."""
    _check_numbers("", capability, _MOST)
    for gpu in capability.gpus:
        _check_numbers("gpus.", gpu, _MOST_OF_GPU)
    if capability.accept is not None:
        try:
            Condition.parse(capability.accept)
        except ValueError as error:
            raise InvalidSettings(f"accept: {error}") from None


def _check_numbers(where: str, told: Capability | Gpu, most: dict[str, int]) -> None:
    for name, limit in most.items():
        if getattr(told, name) > limit:
            raise InvalidSettings(f"{where}{name} is more than any node has: it may be up to {limit}")


def _holds(text: str, resources: Resources, applicant: Applicant) -> bool:
    try:
        return Condition.parse(text).holds(resources, applicant)
    except ValueError:
        # Let in by a newer scheduler: what cannot be read is not overstepped.
        return False
