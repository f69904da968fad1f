"""What must hold at the end of every run. Each invariant is a function that yields one sentence for each violation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.chaos.history import History
from tests.chaos.invariants import attempts, gangs, giving_way, jobs, leftovers, nodes, submissions, witness

Invariant = Callable[[History], Iterator[str]]

#: by their numbers in the catalogue; the words are for people
INVARIANTS: dict[str, Invariant] = {
    "I1 every accepted job exists": submissions.accepted_jobs_exist,
    "I2 no job from nowhere": submissions.no_job_from_nowhere,
    "I3 one job for each idempotency key": submissions.one_job_for_each_key,
    "I4 every job ends": jobs.every_job_ends,
    "I5 one terminal event": jobs.one_terminal_event,
    "I6 nothing after the end": jobs.nothing_after_the_end,
    "I7 legal moves without gaps": jobs.legal_moves,
    "I8 the record is the fold of its events": jobs.fold_of_events,
    "I9 one result, of the newest attempt": attempts.one_result,
    "I10 tokens rise": attempts.tokens_rise,
    "I11 nothing accepted of an older token": attempts.no_older_token,
    "I12 attempts of a job do not overlap": attempts.no_overlap,
    "I13 witnesses overlap only where a node was lost": witness.overlap_only_of_lost,
    "I15 steps recorded are steps done": witness.every_step_done,
    "I17 epochs rise": attempts.epochs_rise,
    "I18 capacity is never exceeded": attempts.capacity,
    "I20 retries within their budget": attempts.retry_budget,
    "I21 a cancel is final": jobs.cancel_is_final,
    "I25 Redis holds no ghosts": leftovers.no_ghosts,
    "I28 no orphan processes": leftovers.no_orphans,
    "I30 no leaked sessions or locks": leftovers.no_sessions,
    "I33 what was refused did not happen": submissions.refused_did_not_happen,
    "I35 secrets appear nowhere": leftovers.no_secrets,
    "I36 no unhandled traceback": leftovers.no_tracebacks,
    "J1 a job is held for a cause": jobs.held_with_cause,
    "M1 an attempt starts once": witness.started_once,
    "N1 a node that is silent is lost": nodes.silent_nodes_are_lost,
    "J2 each job ends as its code says": jobs.expected_outcome,
    "C1 Celery says what the record says": leftovers.celery_agrees,
    "C2 clients read what the record says": submissions.results_agree,
    "C3 chains go on": submissions.chains_go_on,
    "G1 a gang is placed whole, on different nodes": gangs.all_or_none,
    "G2 a gang ends as a whole": gangs.ends_as_a_whole,
    "G3 every rank made its steps": gangs.every_rank_made_its_steps,
    "G4 no member keeps its place": gangs.no_place_is_kept,
    "P1 a place is taken for a good reason": giving_way.for_good_reason,
    "P2 nobody is asked to leave too often": giving_way.not_too_often,
    "P3 what was saved before a stop is gone on from": giving_way.no_step_is_lost,
    "S0 services end only when they are ended": leftovers.no_own_deaths,
}
