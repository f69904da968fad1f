"""`db.dependencies` in memory: no job of a simulated workload comes after another."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.memory_db.tables import Tx


def unmet(tx: Tx) -> Iterator[tuple[str, str]]:
    return iter(())


def old_arrays(tx: Tx) -> list[str]:
    return []
