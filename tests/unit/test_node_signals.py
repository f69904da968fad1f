"""What the first signal does to a node's main thread, wherever it finds it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from celery.worker import state
from kombu.asynchronous import Hub

from workers.agent import NodeWorker


class TooLong(Exception):
    pass


@pytest.fixture
def worker() -> Iterator[SimpleNamespace]:
    """What of a worker its signal handlers touch. Whoever hangs for 5 seconds gets TooLong."""

    def too_long(*_: object) -> None:
        raise TooLong

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    made = SimpleNamespace(node=SimpleNamespace(stopping=False), hub=Hub())
    NodeWorker.install_platform_tweaks(made, made)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(5)
    yield made
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)
    state.should_stop = None
    made.hub.close()


def test_a_signal_that_comes_while_the_loop_holds_its_lock_is_heard(worker):
    with worker.hub._ready_lock:
        os.kill(os.getpid(), signal.SIGTERM)
    assert worker.node.stopping
    assert state.should_stop is not None
