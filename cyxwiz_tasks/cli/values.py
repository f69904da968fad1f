"""Values out of jobs and records as short texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def show_value(value: Any) -> str:
    """A number to four digits, a mapping in one line, anything else as it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + show_mapping(value) + "}"
    return str(value)


def show_mapping(values: Mapping[str, Any]) -> str:
    """name value, name value."""
    return ", ".join(f"{name} {show_value(value)}" for name, value in values.items() if value not in (None, {}, [], ()))
