"""Batches on their way into a statement: one JSON text, which `json_to_recordset` turns into a table.

One parameter of JSON is encoded in C; an array per column would be encoded value by value in Python. PostgreSQL stores
neither NUL nor half a surrogate pair in a text, and no NaN in JSON: they are replaced here, so that one job with odd
bytes in its arguments cannot fail the batch it is in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row

REPLACEMENT = "\ufffd"
#: what `json.dumps` writes for NUL and for surrogates, paired ones too: those survive the cleaning
_SUSPECT = re.compile(r"\\u(?:0000|d[89a-f])")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def batch(rows: Iterable[object]) -> str:
    """The JSON text of a batch of dataclass instances (without slots), to bind where SQL says `:rows`."""
    return storable([vars(row) for row in rows])


def storable(value: Any) -> str:
    """The JSON text of a value as PostgreSQL takes it. NaN and infinities become texts, as `float()` reads them."""
    try:
        text = json.dumps(value, default=_plain, allow_nan=False)
        if _SUSPECT.search(text) is None:
            return text
    except ValueError:
        pass
    return json.dumps(clean(value), default=_plain, allow_nan=False)


def clean(value: Any) -> Any:
    """The value with everything replaced that PostgreSQL cannot store."""
    match value:
        case str():
            return _UNSTORABLE.sub(REPLACEMENT, value)
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {clean(str(key)): clean(item) for key, item in value.items()}
        case list() | tuple():
            return [clean(item) for item in value]
        case _:
            return value


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a statement's rows")


def readable(row: Row[Any]) -> dict[str, Any]:
    """A row as a dictionary that is ready for JSON: times as ISO 8601 texts, UUIDs as texts."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, UUID) else value
        for name, value in row._mapping.items()
    }
