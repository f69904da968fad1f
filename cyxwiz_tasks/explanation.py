"""The scheduler's answer to "why does this job wait?" and "where would it run?"."""

from __future__ import annotations

from typing import Any


class Explanation:
    """`str()` is the text for people, a sentence a line; `facts` is what it is made of, as counts and names."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    @property
    def sentences(self) -> list[str]:
        return [str(sentence) for sentence in self.facts.get("sentences", ())]

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def __repr__(self) -> str:
        return f"<Explanation: {' '.join(self.sentences)}>"
