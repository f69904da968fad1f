"""Messages that an older leader had taken: a frozen one may take one more after its successor has looked.

Here shows, too, that Redis was emptied, for then it has forgotten who leads.
"""

from __future__ import annotations

import logging
from typing import ClassVar

from broker.scheduler.duties.duty import Duty
from broker.scheduler.log_lines import line

log = logging.getLogger(__name__)


class ProcessingLists(Duty):
    every_seconds: ClassVar[float] = 2.0

    def run_once(self) -> dict[str, int]:
        inbox, redis = self.leader.inbox, self.leader.redis
        if inbox.lead(redis):
            log.warning(line("redis_emptied"))
            self.leader.redis_is_back()
        return {"given_back": inbox.give_back(redis)}
