"""One turn of the scheduler: what its handlers share while its transaction is open."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from broker.scheduler.memory import Memory
from broker.scheduler.outbox import Outbox
from cyxwiz_tasks.protocol.commands import Why
from cyxwiz_tasks.protocol.names import HEADER
from cyxwiz_tasks.settings import Settings
from db import job_messages
from db.job_messages import StoredMessage

if TYPE_CHECKING:
    from broker.scheduler.accepting import Submission


@dataclass
class Turn:
    """Handlers change the record through `tx`, `memory` alike, and put what is to be said into `outbox`."""

    tx: Connection
    epoch: int
    memory: Memory
    outbox: Outbox
    settings: Settings
    #: messages of jobs that were read or looked up in this turn
    messages: dict[str, StoredMessage] = field(default_factory=dict)
    #: what is answered only after placement: submissions and questions
    submissions: list[Submission] = field(default_factory=list)
    questions: list[Why] = field(default_factory=list)
    #: jobs that have ended in this turn, and their arrays, whose dependents have not been looked at
    over: list[str] = field(default_factory=list)
    #: jobs on several nodes of which the last member has ended in this turn
    gangs_over: list[str] = field(default_factory=list)
    #: what happened, for the log
    counts: Counter[str] = field(default_factory=Counter)

    def forget(self, job_id: str) -> None:
        """A job has ended: nothing is expected of it any more, and others may have waited for it."""
        self.memory.deadlines.forget(job_id)
        self.memory.start_by.pop(job_id, None)
        self.memory.unreadable.pop(job_id, None)
        self.memory.dependencies.forget(job_id)
        self.over.append(job_id)
        array_id = self.memory.arrays.forget(job_id)
        if array_id is not None:
            self.over.append(array_id)

    def look_up(self, job_ids: list[str]) -> None:
        """See that `messages` holds these jobs, so far as the record knows them and they can be read."""
        missing = [job_id for job_id in job_ids if job_id not in self.messages]
        if missing:
            found = job_messages.messages(self.tx, missing)
            for message in found.values():
                # Who waited for the scheduler's word has it by now.
                if isinstance(ours := message.headers.get(HEADER), dict):
                    ours.pop("reply_to", None)
            self.messages |= found

    def wants_result(self, job_id: str) -> bool:
        """Whether somebody may look at the job's state in the result backend; False for `ignore_result`."""
        message = self.messages.get(job_id)
        return message is None or not message.headers.get("ignore_result")
