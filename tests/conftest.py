"""Real servers for the tests: one PostgreSQL and one Redis for the whole run, a fresh database of each for every test.

They are embedded ones, unless ``CYXWIZ_TEST_DATABASE_URL`` and ``CYXWIZ_TEST_BROKER_URL`` name others: then the tests
make and drop databases called ``cyxwiz_test_*`` there, and empty the numbered databases 1 to 15 of that Redis.
"""

from __future__ import annotations

import os

# Before anything imports torch: its idle threads would otherwise spin on the cores that other processes need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import itertools
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import hypothesis
import pytest
import redis

from broker.embedded import EmbeddedRedis
from db.databases import create_database, drop_database
from db.embedded import EmbeddedPostgres
from db.embedded_account import SHARED_FOLDER
from tests.real_gpu import has_gpu

# The suite runs the same examples each time; `pytest --hypothesis-profile=long` looks for new ones, and for long.
hypothesis.settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("long", max_examples=2000, database=None, deadline=None)
hypothesis.settings.load_profile("fixed")

#: nobody needs the tests' data after a power cut
FAST_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_redis_databases = itertools.cycle(range(1, 16))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and not has_gpu():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A folder for the data of embedded servers that a test starts; removed after it."""
    yield from _passable_folder()


@pytest.fixture(scope="session")
def _shared_servers_folder() -> Iterator[Path]:
    yield from _passable_folder()


def _passable_folder() -> Iterator[Path]:
    """Not below pytest's own folder, which lets no other user pass: as root, PostgreSQL runs as another user."""
    folder = Path(tempfile.mkdtemp(prefix="cyxwiz-tests-"))
    folder.chmod(0o711)
    yield folder
    for moved in folder.rglob("location.txt"):
        place = Path(moved.read_text().strip())
        if place.is_relative_to(SHARED_FOLDER):
            shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_url(_shared_servers_folder: Path) -> Iterator[str]:
    """SQLAlchemy's URL of the run's PostgreSQL, as a user who may create databases."""
    if given := os.environ.get("CYXWIZ_TEST_DATABASE_URL"):
        yield given
        return
    with EmbeddedPostgres(_shared_servers_folder / "postgres", settings=FAST_NOT_DURABLE) as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_url(_shared_servers_folder: Path) -> Iterator[str]:
    """The URL of the run's Redis, without a database's number."""
    if given := os.environ.get("CYXWIZ_TEST_BROKER_URL"):
        yield _without_database(given)
        return
    with EmbeddedRedis(_shared_servers_folder / "redis") as server:
        yield _without_database(server.url)


def _without_database(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.split('/', 1)[0]}"


@pytest.fixture(scope="session")
def _migrated_database(postgres_url: str) -> Iterator[str]:
    """The name of a database with the current schema and nothing in it, to copy from."""
    from db.migrate import upgrade  # tests without a database need no schema

    name = f"cyxwiz_test_template_{secrets.token_hex(4)}"
    create_database(postgres_url, name)
    upgrade(database_on(postgres_url, name))
    yield name
    drop_database(postgres_url, name)


@pytest.fixture
def database_url(postgres_url: str, _migrated_database: str) -> Iterator[str]:
    """SQLAlchemy's URL of a fresh database with the current schema."""
    name = f"cyxwiz_test_{secrets.token_hex(8)}"
    create_database(postgres_url, name, template=_migrated_database)
    yield database_on(postgres_url, name)
    drop_database(postgres_url, name)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """SQLAlchemy's URL of a fresh database without a schema."""
    name = f"cyxwiz_test_{secrets.token_hex(8)}"
    create_database(postgres_url, name)
    yield database_on(postgres_url, name)
    drop_database(postgres_url, name)


@pytest.fixture
def broker_url(redis_url: str) -> str:
    """The URL of an empty Redis database."""
    url = f"{redis_url}/{next(_redis_databases)}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def database_on(server_url: str, name: str) -> str:
    """The URL of database `name` on the server of `server_url`; the rest of it stays to the letter."""
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()
