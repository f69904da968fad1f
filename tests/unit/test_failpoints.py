"""Failpoints strike once, in the process that was told to have some, and nowhere else."""

import os
import signal
import subprocess
import sys
import time

from cyxwiz_tasks import failpoints

HIT = "from cyxwiz_tasks import failpoints; failpoints.hit('a.point'); print('went on')"


def run(folder):
    environment = os.environ | {"CYXWIZ_FAILPOINTS": str(folder)}
    return subprocess.run([sys.executable, "-c", HIT], env=environment, capture_output=True, text=True, check=False)


def test_an_armed_point_kills_once(tmp_path):
    (tmp_path / "a.point").touch()
    assert run(tmp_path).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    assert run(tmp_path).stdout == "went on\n"


def test_another_points_order_is_left_alone(tmp_path):
    (tmp_path / "another.point").touch()
    assert run(tmp_path).returncode == 0
    assert (tmp_path / "another.point").exists()


def test_an_order_to_sleep_stalls(tmp_path):
    (tmp_path / "a.point").write_text("sleep 0.5")
    began = time.monotonic()
    assert run(tmp_path).stdout == "went on\n"
    assert time.monotonic() - began >= 0.5


def test_a_process_without_a_folder_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("CYXWIZ_FAILPOINTS", str(tmp_path))
    (tmp_path / "a.point").touch()
    failpoints.hit("a.point")  # read once, at import
    assert (tmp_path / "a.point").exists()
