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


@pytest.fixture
def plane(broker_url: str, database_url: str, engine) -> Iterator:
    """A Redis, a record and a client; the record is in order when the test is over."""
    from tests.integration.control_plane import ControlPlane

    plane = ControlPlane(broker_url, database_url, engine)
    yield plane
    plane.close()
    assert plane.broken_rules() == {}
