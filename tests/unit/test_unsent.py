"""Artifacts that an agent owed to the artifact store when it died, and what its successor makes of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.integration.waiting import until
from workers.artifact_store import ArtifactStore
from workers.journal import Journal
from workers.unsent import Unsent


def test_what_is_owed_is_sent_once_the_store_is_back_and_what_is_gone_is_told(tmp_path: Path, caplog: Any) -> None:
    store = tmp_path / "store"
    store.write_text("a file where a folder should be")
    weights = tmp_path / "artifacts" / "j" / "attempt-1.rank-1" / "weights.txt"
    weights.parent.mkdir(parents=True)
    weights.write_text("0.5")
    journal = Journal(tmp_path / "journal")
    journal.owes(1, "j/attempt-1.rank-1")
    journal.owes(2, "k/attempt-1")
    settings = SimpleNamespace(home=tmp_path)
    node: Any = SimpleNamespace(journal=journal, settings=settings, artifact_store=ArtifactStore(f"file://{store}"))
    unsent = Unsent(node)
    unsent.start()
    until(lambda: "artifacts in" in caplog.text)
    until(lambda: list(journal.unsent()) == [1])
    assert "job k: the artifact store does not get its artifacts" in caplog.text
    store.unlink()
    until(lambda: not journal.unsent())
    unsent.stop()
    assert (store / "j" / "attempt-1.rank-1" / "weights.txt").read_text() == "0.5"
    assert Journal(tmp_path / "journal").unsent() == {}
