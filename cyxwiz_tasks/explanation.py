"""The scheduler's answer to "why does this job wait?" and "where would it run?"."""

from __future__ import annotations

from typing import Any


class Explanation:
    """`str()` is the text for people, for a waiting job a sentence a line; `facts` are the counts behind it."""

    def __init__(self, value: dict[str, Any]) -> None:
        #: the whole answer: `text`, and where there are any `job`, `state` and `facts`
        self.value = value
        self.facts: dict[str, Any] = value.get("facts") or {}

    def __str__(self) -> str:
        return "\n".join(self.facts.get("sentences") or [str(self.value.get("text", ""))])

    def __repr__(self) -> str:
        return f"<Explanation: {self.value.get('text')}>"
