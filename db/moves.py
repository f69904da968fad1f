"""From which states a job may come into a state: the where-clauses of every statement that moves jobs."""

from __future__ import annotations

from cyxwiz_tasks.states import JOB_MOVES, LIVE_ATTEMPT_STATES, JobState

#: States of a job that has an attempt under way. The live states of an attempt bear the same names, on purpose.
LIVE = sorted(str(state) for state in LIVE_ATTEMPT_STATES)


def sources(to: JobState) -> list[str]:
    """The states from which JOB_MOVES lets a job come into `to`."""
    return sorted(str(state) for state, targets in JOB_MOVES.items() if to in targets)


def waiting_sources(to: JobState) -> list[str]:
    """The same, without the states of jobs with an attempt under way: those move together with their attempt."""
    return [state for state in sources(to) if state not in LIVE]
