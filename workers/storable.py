"""Texts and JSON as PostgreSQL can store them: it takes neither NUL characters nor halves of surrogate pairs."""

from __future__ import annotations

import json
import re
from typing import Any

#: how either of them looks in JSON text that is plain ASCII
_SUSPECT = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)


def storable_text(text: str) -> str:
    """The text with a mark in the place of each such character."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def storable_json(encoded: str) -> Any:
    """The value of a JSON text, its strings cleaned."""
    value = json.loads(encoded)
    return _clean(value) if _SUSPECT.search(encoded) else value


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        return {storable_text(name): _clean(inner) for name, inner in value.items()}
    return [_clean(inner) for inner in value] if isinstance(value, list) else value
