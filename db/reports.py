"""What a node's reports must look like to be compared with the record: one odd number must not fail a whole batch."""

from __future__ import annotations

import uuid

from cyxwiz_tasks.errors import ProtocolError


def known_id(value: str) -> str | None:
    """The usual form of a UUID's text; None if it is no UUID, and so no job's or node's id."""
    try:
        return str(uuid.UUID(value))
    except (ValueError, AttributeError, TypeError):
        return None


def check_ids(*ids: str) -> None:
    """Raises ProtocolError if one of them is no UUID."""
    for value in ids:
        if known_id(value) is None:
            raise ProtocolError(f'"{value}" is not the id of a job or node: use one release on both sides')


def check_number(field: str, value: int | None, bits: int) -> None:
    """Raises ProtocolError if a number does not fit into a column of so many bits."""
    if value is not None and not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        raise ProtocolError(f"{field}: {value} does not fit into {bits} bits: use one release on both sides")
