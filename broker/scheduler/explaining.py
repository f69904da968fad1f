"""The leader's answer to `why`: where a job stands, and what would have to change for it to run."""

from __future__ import annotations

from typing import Any

from broker.scheduler.turn import Turn
from cyxwiz_tasks.protocol import Why


def explain(turn: Turn, question: Why) -> dict[str, Any]:
    return {"text": "soon"}
