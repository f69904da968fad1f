"""What single owners may have at a time, beside what the settings say of all."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, text


class OwnerLimit(NamedTuple):
    owner: str
    weight: float
    #: None: as many as he likes
    running: int | None
    waiting: int | None
    per_minute: float | None


_OF_OWNERS = text("SELECT owner, weight, running, waiting, per_minute FROM owner_limits")


def of_owners(tx: Connection) -> list[OwnerLimit]:
    return [OwnerLimit(*row) for row in tx.execute(_OF_OWNERS)]


_SET = text(
    """
    INSERT INTO owner_limits (owner, weight, running, waiting, per_minute)
    VALUES (:owner, :weight, :running, :waiting, :per_minute)
    ON CONFLICT (owner) DO UPDATE SET weight = :weight, running = :running, waiting = :waiting,
        per_minute = :per_minute"""
)


def set_limit(tx: Connection, limit: OwnerLimit) -> None:
    tx.execute(_SET, limit._asdict())
