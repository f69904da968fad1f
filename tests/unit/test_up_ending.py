"""`cyxwiz up` where its terminal is closed, or what it prints goes to a full disk."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from rich.console import Console

from broker.cli import say_on
from broker.stack import Plan, running
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.settings import Settings

WAIT_FOR_STOP = """
import os, signal
{before}
from broker.cli import StopSignal
stop = StopSignal()
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGHUP)
print(stop())
"""


@pytest.mark.parametrize(
    ("before", "stops"),
    # Whoever runs the tests may have it ignored himself.
    [
        ("signal.signal(signal.SIGHUP, signal.SIG_DFL)", "True"),
        ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", "False"),
    ],
    ids=["terminal", "nohup"],
)
def test_a_closed_terminal_stops_all_in_order(before, stops):
    run = subprocess.run(
        [sys.executable, "-c", WAIT_FOR_STOP.format(before=before)], capture_output=True, text=True, check=False
    )
    assert run.returncode != -signal.SIGHUP
    assert run.stdout.strip() == stops


def test_a_home_that_is_somebody_elses_is_said_so(tmp_path):
    (tmp_path / "stack.lock").mkdir()  # to root, another user's file is open as well
    with (
        pytest.raises(InvalidSettings, match=r"CYXWIZ_HOME: .*stack\.lock cannot be written"),
        running(Plan(), Settings(home=tmp_path), lambda *_: None),
    ):
        pytest.fail("it began")


def test_a_line_that_cannot_be_written_ends_nothing():
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - it cannot be closed in order: that would write
    say_on(Console(file=full))("worker", "died with status 1")
    with pytest.raises(OSError, match="No space left"):
        full.close()
