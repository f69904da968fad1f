"""Preferences: wishes that a node need not meet, each "field=value" with a weight, such as {"region=eu-*": 2}."""

from __future__ import annotations

import math
import re
from typing import Any

#: requirements on a GPU that may be preferred, and those on the node; `labels.NAME` is one of the latter
GPU_FIELDS = ("gpu_memory", "gpu_model", "compute_capability")
_NODE_FIELDS = ("cuda", "driver", "torch", "cpus", "ram", "disk", "os", "region", "node")
_VERSIONS = ("compute_capability", "cuda", "driver", "torch")
_LABEL = "labels."
#: "torch>=2.12" and "torch=>=2.12" are the same
_FORM = re.compile(r"\s*(?P<field>[A-Za-z][\w.-]*)\s*(?:=(?!=)|(?=[<>]|==))\s*(?P<value>\S.*?)\s*")
#: each is judged over all nodes whenever a new kind of job arrives
MOST = 16


def checked(given: Any) -> dict[str, float]:
    """Preferences in canonical form: sorted, without spaces around the signs. Raises ValueError that shows the form."""
    if not isinstance(given, dict):
        raise ValueError(f'{given!r} says no weights: write {{"gpu_model=H100*": 3, "region=eu-*": 1}}')
    if len(given) > MOST:
        raise ValueError(f"{len(given)} preferences are too many: {MOST} may be given")
    found: dict[str, float] = {}
    for text, weight in given.items():
        field, value = split(text)
        sign = "" if value[0] in "<>=" else "="
        found[f"{field}{sign}{value}"] = _weight(text, weight)
    return dict(sorted(found.items()))


def split(text: Any) -> tuple[str, str]:
    """Field and value of "field=value". Raises ValueError that shows the form, or names the fields there are."""
    found = _FORM.fullmatch(str(text))
    if found is None:
        raise ValueError(f'"{text}" is no preference: write field=value, such as "gpu_model=H100*"')
    field, value = found["field"], found["value"]
    if field not in GPU_FIELDS + _NODE_FIELDS and not (field.startswith(_LABEL) and field != _LABEL):
        known = ", ".join((*GPU_FIELDS, *_NODE_FIELDS, "labels.NAME"))
        raise ValueError(f'"{field}" cannot be preferred. There are {known}')
    if value[0] in "<>=" and field not in _VERSIONS:
        raise ValueError(f'"{text}": only versions are compared ({", ".join(_VERSIONS)}). Write "{field}=value"')
    return field, value


def as_requirement(text: str) -> dict[str, Any]:
    """What "field=value" would be if it were required."""
    field, value = split(text)
    label = field.removeprefix(_LABEL)
    return {field: value} if label == field else {"labels": {label: value}}


def _weight(text: Any, weight: Any) -> float:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    # Beyond a million, or below its inverse, the others would not count at all.
    if not number or not math.isfinite(weight) or not 1e-6 <= weight <= 1e6:
        raise ValueError(f'the weight of "{text}" is {weight!r}: write a number above 0, such as 2')
    return float(weight)
