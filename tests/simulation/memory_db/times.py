"""Moments of the rows in memory: seconds of the simulated clock."""

from __future__ import annotations

from datetime import datetime

from tests.simulation.memory_db.tables import Tx


def seconds_of(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None


def after(tx: Tx, seconds: float | None) -> float | None:
    return tx.now + seconds if seconds is not None else None
