"""The project's default application on the broker of one test, with nothing of it left for the next."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from cyxwiz_tasks.celery_app import app


@contextmanager
def app_on(url: str) -> Iterator[None]:
    """Within it, `delay()` and `get()` speak to `url`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "_server", url)
        _forget()
        yield
        # Results that are still alive unsubscribe when they go: that takes the server that they came from.
        gc.collect()
        _forget()


def _forget() -> None:
    # What Celery does in a forked process: connections and producers are made anew.
    app._after_fork()
    if app._backend_cache is not None:
        app._backend_cache.result_consumer.stop()
    app._backend_cache = None
    with suppress(AttributeError):
        del app._local.backend
