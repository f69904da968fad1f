"""Folders of attempts that ended long ago are removed by a thread of their own: a big one takes minutes."""

from __future__ import annotations

import logging
import threading

from workers.node import Node

log = logging.getLogger(__name__)

_EVERY_SECONDS = 3600.0


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
        node = self._node
        while not self._stopping.is_set():
            try:
                node.folder.forget_attempts(node.settings.result_ttl_seconds, keep=node.open_tokens())
            except OSError as error:
                log.warning("old attempts cannot be removed: %s", error)
            self._stopping.wait(_EVERY_SECONDS)
