"""Artifacts that the agent before this one owed to the artifact store: it died before they were there, or gave up.

Sent in the background for as long as it takes. The ends of their attempts do not wait for them, nor does the node: by
the time that big files are sent, it would be given up, and what completed here would run again elsewhere.
"""

from __future__ import annotations

import logging
import threading

from workers.attempt_artifacts import holds_any
from workers.confirm import pause_seconds
from workers.node import Node

log = logging.getLogger(__name__)


class Unsent:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cyxwiz-unsent", daemon=True)

    def start(self) -> None:
        """Begin with what is in the journal now, before there are attempts of this agent's own."""
        self._waiting = self._node.journal.unsent()
        if self._waiting and self._node.artifact_store is not None:
            self._thread.start()

    def stop(self) -> None:
        # It may wait for the store; what it has not sent is in the journal.
        self._stopping.set()

    def _run(self) -> None:
        failures = 0
        while self._waiting and not self._stopping.wait(pause_seconds(failures) if failures else 0.0):
            for token, name in list(self._waiting.items()):
                if self._send(name, is_first_try=failures == 0):
                    self._node.journal.sent(token)
                    del self._waiting[token]
            failures += 1

    def _send(self, name: str, *, is_first_try: bool) -> bool:
        """False: not yet."""
        assert self._node.artifact_store is not None
        folder, job = self._node.settings.home / "artifacts" / name, name.partition("/")[0]
        if not holds_any(folder):
            log.warning("job %s: the artifact store does not get its artifacts: %s was removed, or closed", job, folder)
            return True
        try:
            self._node.artifact_store.push(folder, name)
        except Exception as error:  # of whatever file system it is
            if is_first_try:
                log.warning("job %s: artifacts in %s cannot be sent to the artifact store yet: %s", job, folder, error)
            return False
        log.info("job %s: its artifacts, owed since the agent before this one, are in the artifact store", job)
        return True
