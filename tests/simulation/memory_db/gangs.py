"""`db.gangs` in memory: there are none."""

from __future__ import annotations

from db.gangs import Member
from tests.simulation.memory_db.tables import Tx


def live(tx: Tx) -> dict[str, list[Member]]:
    return {}
