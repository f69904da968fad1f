"""The scheduler's answer to "why does this job wait?" and "where would it run?"."""

from __future__ import annotations

from typing import Any


class Explanation:
    """`str()` is the text for people; `facts` is what it is made of."""

    def __init__(self, value: Any) -> None:
        self.facts: dict[str, Any] = dict(value) if isinstance(value, dict) else {"text": str(value)}

    @property
    def text(self) -> str:
        return str(self.facts.get("text", ""))

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Explanation: {self.text}>"
