"""`db.usage` in memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from broker.scheduler.shares import Totals, dominant_share
from tests.simulation.memory_db.tables import Tx


def decayed(tx: Tx, totals: Sequence[int], mean_life_seconds: float) -> list[tuple[str, str, float]]:
    found: dict[tuple[str, str], float] = defaultdict(float)
    for attempt in tx.tables.attempts.values():
        ended_at = attempt.ended_at if attempt.ended_at is not None else tx.now
        weight = math.exp((ended_at - tx.now) / mean_life_seconds) - math.exp(
            (attempt.assigned_at - tx.now) / mean_life_seconds
        )
        job, new = tx.tables.jobs[attempt.job_id].new, attempt.new
        gpus = 0 if job.resources.get("shared") else len(new.gpus)
        taken = gpus, new.gpu_memory_bytes, new.cpus, new.ram_bytes
        found[job.project, job.owner] += max(0.0, weight) * dominant_share(taken, Totals(*totals))
    return [(*names, past) for names, past in found.items()]
