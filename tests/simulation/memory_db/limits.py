"""`db.limits` in memory: nobody has limits of his own."""

from __future__ import annotations

from db.limits import OwnerLimit
from tests.simulation.memory_db.tables import Tx


def of_owners(tx: Tx) -> list[OwnerLimit]:
    return []
