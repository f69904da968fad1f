"""The form of the scheduler's log: one line per event, `event=name key=value ...`, values quoted where they need it."""

from __future__ import annotations

import json
import re

_PLAIN = re.compile(r"[\w.:/@+-]+")


def line(event: str, **fields: object) -> str:
    """A line for the log; fields that are None are left out. Never pass a message's body or an URL."""
    shown = {name: _show(value) for name, value in fields.items() if value is not None}
    return " ".join([f"event={event}", *(f"{name}={value}" for name, value in shown.items())])


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    # JSON escapes line breaks and control characters, so nobody forges a line of ours.
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
