"""What a scheduler cannot read of its record, such as a row of a newer release, and what is told of it. Pure.

A job or a node that cannot be read is set aside, so that nobody else waits for it: see `setting_aside.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cyxwiz_tasks.complaints import reason
from cyxwiz_tasks.errors import CyxwizError
from cyxwiz_tasks.resources import Resources
from db.attempts import Live


def why(error: Exception) -> str:
    """What cannot be read, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([".".join(str(part) for part in first["loc"]) or error.title, reason(first)])
    return str(error) if isinstance(error, CyxwizError) else type(error).__name__


def story(error: Exception) -> str:
    """What a job's page says of it."""
    return (
        f"held, this scheduler cannot read what the record says of it: {why(error).rstrip('. ')}. "
        "If a newer release wrote that, `cyxwiz release ID` once a scheduler of that release leads; "
        "else `cyxwiz cancel ID`, and submit it again"
    )


def stand_in(attempt: Live, nodes: int) -> Resources:
    """What an attempt holds, on each of `nodes`, in the place of what its job asked for."""
    said: Mapping[str, Any] = attempt.resources if isinstance(attempt.resources, dict) else {}
    gpus, cpus, ram = len(attempt.gpus), attempt.cpus, str(attempt.ram_bytes) if attempt.ram_bytes else None
    if gpus and said.get("shared") is True:
        memory = str(attempt.gpu_memory_bytes // gpus or 1)
        return Resources(nodes=nodes, gpus=gpus, gpu_memory=memory, shared=True, cpus=cpus, ram=ram)
    return Resources(nodes=nodes, gpus=gpus, cpus=cpus, ram=ram)
