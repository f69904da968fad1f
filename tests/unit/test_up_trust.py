"""Whose folders the nodes of `cyxwiz up` import jobs from."""

from __future__ import annotations

import pytest

from broker.stack import Plan, Stack, _workers
from cyxwiz_tasks.settings import Settings


@pytest.mark.parametrize(
    ("listen", "broker_url", "trusted"),
    [(None, None, True), ("0.0.0.0", None, False), (None, "redis://lab/0", False)],
    ids=["own", "listening", "given"],
)
def test_folders_of_submitters_are_used_only_where_nobody_else_reaches_the_broker(
    tmp_path, listen, broker_url, trusted
):
    settings = Settings(home=tmp_path, broker_url=broker_url)
    stack = Stack(settings, broker_url="redis://somewhere/0", database_url="")
    [worker] = _workers(Plan(parts=("redis", "worker"), listen=listen), stack)
    assert ("--submitted-paths" in worker.arguments) == trusted
