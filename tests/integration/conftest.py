"""Fixtures for tests on the record."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def engine(database_url: str) -> Iterator:
    """An engine on a fresh database with the current schema."""
    from db.engine import make_engine

    engine = make_engine(database_url, "test")
    yield engine
    engine.dispose()


@pytest.fixture
def record(engine) -> Iterator:
    """A record with a leader and one node."""
    from db.leadership import try_lead
    from tests.integration.record import Record

    leadership = try_lead(engine, "test", silence_seconds=120)
    record = Record(engine, leadership.epoch, "")
    record.node_id = record.register()
    yield record
    leadership.release()
