"""Nodes that share a folder or a store name the same place, and others do not."""

from __future__ import annotations

import threading

from cyxwiz_tasks.settings import Settings
from workers.checkpoint_place import checkpoint_place


def test_nodes_with_one_home_share_it_also_if_they_start_at_once(tmp_path):
    found: list[str | None] = []
    settings = Settings(home=tmp_path)
    starts = [threading.Thread(target=lambda: found.append(checkpoint_place(settings))) for _ in range(8)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(found) == 8
    assert set(found) == {checkpoint_place(settings)}
    assert found[0]
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [".place"]
    assert checkpoint_place(Settings(home=tmp_path / "other")) != found[0]


def test_a_store_is_shared_and_its_address_is_not_told(tmp_path):
    one, two = (Settings(home=tmp_path / name, artifact_store="s3://key:secret@bucket/jobs") for name in "ab")
    assert checkpoint_place(one) == checkpoint_place(two)
    assert "secret" not in str(checkpoint_place(one))
    assert checkpoint_place(one) != checkpoint_place(Settings(home=tmp_path, artifact_store="s3://bucket/others"))


def test_a_folder_as_a_store_is_shared_by_who_sees_the_same_one(tmp_path):
    stores = [Settings(home=tmp_path / name, artifact_store=f"file://{tmp_path}/shared") for name in "ab"]
    assert checkpoint_place(stores[0]) == checkpoint_place(stores[1])
    assert checkpoint_place(stores[0]) == checkpoint_place(Settings(home=tmp_path, artifact_store=f"{tmp_path}/shared"))


def test_a_node_that_cannot_tell_shares_with_nobody(tmp_path, caplog):
    (tmp_path / "artifacts").write_text("a file in the way")
    assert checkpoint_place(Settings(home=tmp_path)) is None
    assert "jobs do not move from here" in caplog.text
