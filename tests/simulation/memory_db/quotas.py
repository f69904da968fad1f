"""`db.quotas` in memory: there are none."""

from __future__ import annotations

from typing import Any

from tests.simulation.memory_db.tables import Tx


def of_projects(tx: Tx) -> dict[str, dict[str, Any]]:
    return {}
