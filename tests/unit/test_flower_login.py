"""The password of Flower: kept, private, and never an empty one, which would let everybody in."""

from __future__ import annotations

from broker.flower import login


def test_a_password_is_made_once_and_kept_private(tmp_path):
    made = login(tmp_path)
    assert made.is_new
    again = login(tmp_path)
    assert (again.password, again.is_new) == (made.password, False)
    assert (tmp_path / "flower.password").stat().st_mode & 0o077 == 0


def test_a_file_that_a_full_disk_left_empty_is_no_password(tmp_path):
    (tmp_path / "flower.password").touch(mode=0o600)
    made = login(tmp_path)
    assert made.password
    assert made.is_new
    assert login(tmp_path).password == made.password
