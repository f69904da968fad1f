"""Ends of attempts for which no thread waits: told to the scheduler in the background, for as long as it takes.

Those that this agent's forerunner left open; those of messages that Celery dropped because they were revoked; those
that the record has and of which Celery could not be told, because Redis took nothing then. Of all of them the scheduler
says the last word in Celery itself (`Ended.untold`).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from cyxwiz_tasks.protocol.reports import Ended, Process
from cyxwiz_tasks.states import Cause
from workers.attempt_artifacts import forget_checkpoints
from workers.attempt_cgroup import AttemptCgroup
from workers.confirm import confirm
from workers.journal import Begun, boot_id
from workers.node import Node
from workers.process_tree import kill_tree

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_CGROUP_SECONDS = 5.0


class Courier:
    """A thread of its own. What it is given is in the journal until it is delivered."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: queue.Queue[Ended] = queue.Queue()
        self._unconfirmed: dict[int, None] = {}
        self._thread = threading.Thread(target=self._run, name="cyxwiz-courier", daemon=True)

    def start(self) -> None:
        """Begin with what the node's last agent has left open."""
        end_left_over_groups(self._node.id)
        for begun in self._node.journal.interrupted():
            self._node.journal.ended(end_of_interrupted(begun))
        for ended in self._node.journal.untold():
            log.info("job %s: its end (%s) is told once more", ended.job, ended.outcome)
            self._put(ended.model_copy(update={"untold": True}), confirmed=False)
        self._thread.start()

    def stop(self) -> None:
        # It may wait for Redis or for a scheduler; what it has not delivered is in the journal.
        self._thread.join(0.0)

    def deliver(self, ended: Ended, *, confirmed: bool = False) -> None:
        """Tell of this end, whose last word in Celery is the scheduler's to say. `confirmed`: the record has it."""
        untold = ended.model_copy(update={"untold": True})
        self._node.journal.ended(untold)
        self._put(untold, confirmed)

    def tokens(self) -> tuple[int, ...]:
        """Of the attempts whose end the scheduler has not confirmed."""
        return tuple(self._unconfirmed)

    def wait_until_delivered(self, look: Callable[[], None]) -> None:
        """Return once nothing waits; `look` is called meanwhile, and may raise to give up."""
        with self._waiting.all_tasks_done:
            while self._waiting.unfinished_tasks:
                look()
                self._waiting.all_tasks_done.wait(_LOOK_SECONDS)

    def _put(self, ended: Ended, confirmed: bool) -> None:
        if not confirmed:
            self._unconfirmed[ended.token] = None
        self._waiting.put(ended)

    def _run(self) -> None:
        while True:
            ended = self._waiting.get()
            reply = confirm(self._node, ended)
            if reply is not None:
                self._node.journal.told(ended.token)
                self._unconfirmed.pop(ended.token, None)
            self._waiting.task_done()
            # Nobody waits for this one, which may take long.
            if reply is not None and reply.committed and reply.final and ended.outcome in ("completed", "cancelled"):
                forget_checkpoints(self._node.artifact_store, ended.job, self._node.checkpoints_path(ended.job))


def end_of_interrupted(begun: Begun) -> Ended:
    """The end of an attempt whose agent died: its processes died with it, and what is left of them dies here."""
    if begun.boot == boot_id() and (left := kill_tree(begun.pid, started=begun.started)):
        log.error("job %s: processes %s of the agent before this one hang in the kernel", begun.job, left)
    return Ended(
        **begun.identity,
        outcome="failed",
        cause=Cause.NODE_LOST,
        message="its node's agent ended without warning, and the job's processes with it",
        process=Process(pid=begun.pid, device=begun.device),
    )


def end_left_over_groups(node_id: str) -> None:
    """End and remove the control groups that an agent of this node left behind."""
    for group in AttemptCgroup.leftovers(f"{node_id}-"):
        try:
            group.kill()
            if not group.wait_empty(_CGROUP_SECONDS):
                log.error("control group %s: processes %s hang in the kernel", group.folder, group.pids())
            group.remove()
        except OSError as error:
            log.warning("control group %s could not be removed: %s", group.folder, error)
