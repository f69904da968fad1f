"""Whose jobs a node takes, as whoever starts it says: `--accept 'owner in ["lab-a", "lab-b"]'`."""

from __future__ import annotations

from cyxwiz_tasks.conditions import Condition
from cyxwiz_tasks.errors import InvalidSettings


def checked_accept(text: str | None) -> dict[str, str]:
    """`accept` of a capability; nothing without a condition. Raises InvalidSettings that shows the form."""
    if text is None:
        return {}
    try:
        Condition.parse(text)
    except ValueError as error:
        raise InvalidSettings(f"--accept: {error}") from None
    return {"accept": text}
