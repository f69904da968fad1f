"""What nodes tell with their beats of what they run, as Redis has it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import redis
from pydantic import ValidationError

from cyxwiz_tasks.protocol.names import running_key
from cyxwiz_tasks.protocol.reports import Running


def tellings(client: redis.Redis, node_ids: Collection[str]) -> dict[str, Running]:
    """The newest telling of each of these nodes that has one, in one round trip. Raises redis' errors."""
    if not node_ids:
        return {}
    texts: Any = client.mget([running_key(node_id) for node_id in node_ids])
    found = {node_id: _read(text) for node_id, text in zip(node_ids, texts, strict=True) if text is not None}
    return {node_id: telling for node_id, telling in found.items() if telling is not None}


def _read(text: bytes) -> Running | None:
    try:
        return Running.model_validate_json(text)
    except ValidationError:
        return None
