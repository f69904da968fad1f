"""What jobs of long ago left on this disk is removed by a thread of its own: a big folder takes minutes."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Collection
from pathlib import Path

from workers.node import Node
from workers.node_folder import last_change

log = logging.getLogger(__name__)

_EVERY_SECONDS = 3600.0
_DAY_SECONDS = 86_400.0


class Forgetting:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cyxwiz-forgetting", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        # It may be in the middle of a big folder, and goes on with it when the node is back.
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._forget()
            except OSError as error:
                log.warning("what old jobs left cannot be removed: %s", error)
            self._stopping.wait(_EVERY_SECONDS)

    def _forget(self) -> None:
        node, settings = self._node, self._node.settings
        node.folder.forget_attempts(settings.result_ttl_seconds, keep=node.open_tokens())
        if settings.artifact_retention_days is not None:
            age_seconds = settings.artifact_retention_days * _DAY_SECONDS
            removed = forget_artifacts(settings.home / "artifacts", age_seconds, keep=node.attempts.jobs())
            if removed:
                log.info("artifacts of %d jobs removed: nothing changed there for so long", removed)


def forget_artifacts(root: Path, older_than_seconds: float, keep: Collection[str] = ()) -> int:
    """Remove the folders of jobs below which nothing has changed for so long, except of those in `keep`; how many.

    What nodes with the same home run must change something more often than that.
    """
    limit, removed = time.time() - older_than_seconds, 0
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.name not in keep and folder.is_dir() and last_change(folder) < limit:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed
