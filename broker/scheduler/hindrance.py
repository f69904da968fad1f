"""What keeps a scheduler from leading, in its log: at once, and what stays so at growing intervals."""

from __future__ import annotations

import logging
import time

from broker.scheduler.log_lines import line
from cyxwiz_tasks.errors import ServerUnavailable

log = logging.getLogger(__name__)

#: what `cyxwiz up` takes for the sign that a scheduler is ready, where another one leads
ANOTHER_LEADS = line("another_leads")
#: between the first two lines that say the same; each pause is twice the last, up to the longest
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0


class Growing:
    """Whether it is time to say something, or to say it again."""

    def __init__(self) -> None:
        self._said, self._said_at, self._pause_seconds = "", float("-inf"), _FIRST_PAUSE_SECONDS

    def is_due(self, text: str, now: float) -> bool:
        """`now` is in seconds. A text that is new waits for the first pause alone."""
        pause = self._pause_seconds if text == self._said else _FIRST_PAUSE_SECONDS
        if now < self._said_at + pause:
            return False
        self._pause_seconds = min(2 * pause, _LONGEST_PAUSE_SECONDS) if text == self._said else _FIRST_PAUSE_SECONDS
        self._said, self._said_at = text, now
        return True


class Hindrance:
    """Hears after each try what hindered it; None is another scheduler that leads, which is in order and said once."""

    def __init__(self) -> None:
        self._growing = Growing()
        self._another_leads = False

    def __call__(self, trouble: ServerUnavailable | None) -> None:
        if trouble is None:
            if not self._another_leads:
                log.info(ANOTHER_LEADS)
        elif self._growing.is_due(str(trouble), time.monotonic()):
            log.warning(line("cannot_lead", reason=trouble))
        self._another_leads = trouble is None
