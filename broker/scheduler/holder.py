"""The name under which an attempt holds its place: its job's id; for the other members of a gang, with their rank."""

from __future__ import annotations


def holder(job_id: str, rank: int) -> str:
    return f"{job_id}.{rank}" if rank else job_id
