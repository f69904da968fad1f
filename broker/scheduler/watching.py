"""How long a node was silent, counted only while somebody could have heard it. Pure: times come in, times go out.

Beats lie in Redis with the time of its clock, so a leader that was slow misses none. But while Redis itself did not
answer, nobody could beat. Who asks cannot tell a Redis that stood still from a connection that did, so time without an
answer counts for at most a second of silence. A connection that stays slow makes judgements late, and never wrong.
"""

from __future__ import annotations

from collections import deque

#: a longer time between two answers of Redis, or so much difference between two clocks, is time in which nobody watched
GAP_SECONDS = 1.0


class Watch:
    """Times without a name are seconds of this process's monotonic clock; those of Redis' clock are called so."""

    def __init__(self, remembered_seconds: float) -> None:
        """`remembered_seconds`: no silence longer than that is asked for."""
        self.remembered_seconds = remembered_seconds
        #: by Redis' clock; beats from before say nothing; None: from the next look on
        self.since: float | None = None
        #: the last look, by both clocks
        self._looked = 0.0, 0.0
        #: when, by Redis' clock, it answered again, and how long nobody watched before
        self._gaps: deque[tuple[float, float]] = deque()

    def start_anew(self) -> None:
        """Redis was away: nodes get time to find it again."""
        self.since = None

    def looked(self, at: float, redis_now: float, unanswered_seconds: float) -> None:
        """Redis said its time; since the last look, its answers were at most `unanswered_seconds` apart."""
        mine, theirs = self._looked
        jumped = abs((redis_now - theirs) - (at - mine)) > GAP_SECONDS
        self._looked = at, redis_now
        if self.since is None or jumped:
            self.since = redis_now
            self._gaps.clear()
        elif unanswered_seconds > GAP_SECONDS:
            self._gaps.append((redis_now, unanswered_seconds - GAP_SECONDS))
            while self._gaps and redis_now - self._gaps[0][0] > self.remembered_seconds:
                self._gaps.popleft()

    def silence(self, beat: float) -> float:
        """Seconds from a beat, by Redis' clock, to the last look in which another one could have come."""
        assert self.since is not None, "nobody has looked yet"
        lost_seconds = sum(seconds for ended, seconds in self._gaps if ended > beat)
        return self._looked[1] - max(beat, self.since) - lost_seconds

    def heard(self, beat: float) -> bool:
        """Whether a beat came under this watch."""
        return self.since is not None and beat > self.since
