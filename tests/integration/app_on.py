"""The project's default application on the broker of one test, with nothing of it left for the next."""

from __future__ import annotations

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
        _forget()


def _forget() -> None:
    # What Celery does in a forked process: connections and producers are made anew.
    app._after_fork()
    for backend in (app._backend_cache, getattr(app._local, "backend", None)):
        if backend is not None:
            # A result that a test still holds unsubscribes when it goes, from a server that is gone by then.
            backend.result_consumer.cancel_for = lambda task_id: None
            backend.result_consumer.stop()
    app._backend_cache = None
    with suppress(AttributeError):
        del app._local.backend
