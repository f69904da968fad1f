"""One rule for the broker's address, whoever reads it: redis-py, kombu, Celery, and the settings."""

from __future__ import annotations

import pytest
from kombu.utils.url import parse_url

from cyxwiz_tasks import Client
from cyxwiz_tasks.broker_url import usable
from cyxwiz_tasks.errors import NoStack, ServerUnavailable
from cyxwiz_tasks.settings import Settings


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("redis://:p%40ss@h:1/3", "redis://:p%40ss@h:1/3"),
        ("rediss://:p%40ss@h:1/3", "rediss://:p%40ss@h:1/3?ssl_cert_reqs=required"),
        ("rediss://h/0?ssl_ca_certs=/a%20b.pem", "rediss://h/0?ssl_ca_certs=%2Fa+b.pem&ssl_cert_reqs=required"),
        ("rediss://h:1/0?ssl_cert_reqs=CERT_NONE", "rediss://h:1/0?ssl_cert_reqs=none"),
        ("rediss://h:1/0?ssl_cert_reqs=optional", "rediss://h:1/0?ssl_cert_reqs=optional"),
    ],
)
def test_what_all_of_them_understand(given: str, used: str) -> None:
    assert usable(given) == used
    with Client(given) as client:
        arguments = client.connection.connection_pool.connection_kwargs
        assert client.app.backend.connparams["host"] == arguments["host"] == "h"
        assert client.app.backend.connparams.get("password") == arguments.get("password")
        assert parse_url(client.app.connection_for_write().as_uri(include_password=True))["hostname"] == "h"


@pytest.mark.parametrize(("url", "db"), [("redis://", 0), ("redis:///1", 1)])
def test_one_without_a_host_is_this_machine_to_all_of_them(url: str, db: int) -> None:
    assert usable(url) == url
    with Client(url) as client:
        arguments, backend = client.connection.connection_pool.connection_kwargs, client.app.backend.connparams
        assert {arguments.get("host", "localhost"), backend["host"]} == {"localhost"}
        assert {arguments.get("db", 0), backend["db"]} == {db}
        kombu = client.app.connection_for_write()
    assert (kombu.hostname or "localhost", int(kombu.virtual_host.strip("/") or 0)) == ("localhost", db)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("unix:///run/redis.sock?secret", "unix://... cannot be used: write redis://"),
        ("redis+socket:///run/redis.sock", "cannot be used"),
        ("localhost:6379", "cannot be used"),
        ("redis://:secret@h?db=3", "its option db is not known to all that read it: leave it out"),
        ("redis://:secret@h?ssl_cert_reqs=none", "only ssl_... of a rediss:// may stand there"),
        ("rediss:///0", "cannot be used"),
        ("redis:h", "cannot be used"),
        ("rediss://:secret@h/0?ssl_cert_reqs=maybe", "ssl_cert_reqs=maybe is unknown: write one of required"),
    ],
)
def test_what_only_some_would_take_is_refused_by_all(monkeypatch: pytest.MonkeyPatch, url: str, words: str) -> None:
    monkeypatch.setenv("CYXWIZ_BROKER_URL", url)
    for ask in (lambda: Client(url), lambda: Settings().broker()):
        with pytest.raises(ServerUnavailable, match="CYXWIZ_BROKER_URL is no URL of a Redis") as caught:
            ask()
        assert words in str(caught.value)
        assert "secret" not in str(caught.value)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CYXWIZ_HOME", str(tmp_path))
    for name in ("BROKER_URL", "DATABASE_URL", "LEASE_SECONDS", "OWNER_WAITING_LIMIT", "ARTIFACT_STORE"):
        monkeypatch.setenv(f"CYXWIZ_{name}", "")
    read = Settings()
    assert (read.broker_url, read.database_url, read.artifact_store) == (None, None, None)
    assert (read.lease_seconds, read.owner_waiting_limit) == (15.0, None)
    with pytest.raises(NoStack):
        read.broker()
