"""The small language of requirements: sizes, ranges of sizes, bounds on versions, patterns of names.

A bare size or version means "at least": `"24GB"` is `"24GB.."`, `"8.0"` is `">=8.0"`. Units are binary (1GB = 2**30
bytes), as cards and memory modules are sold.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

UNITS = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*$", re.IGNORECASE)
_CLAUSE = re.compile(r"^\s*(>=|<=|==|>|<|)\s*(\d+(?:\.\d+)*)\s*$")


def parse_size(text: str | int) -> int:
    """Bytes of "24GB", "512 MiB", "1.5TB" or a plain number.

    Raises ValueError that shows the form.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"{text} is negative")
        return text
    found = _SIZE.match(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'"{text}" is not a size: write a number and a unit, such as "24GB" or "512MB"')
    size_bytes = float(found[1]) * UNITS[(found[2].upper() + "B") if found[2] else ""]
    if not math.isfinite(size_bytes):
        raise ValueError("it has more digits than any size")
    return int(size_bytes)


def show_size(size_bytes: int) -> str:
    """The shortest text for a size, to one decimal: 24GB, 1.5TB."""
    for unit in ("TB", "GB", "MB", "KB"):
        if size_bytes >= UNITS[unit]:
            return f"{size_bytes / UNITS[unit]:.1f}".removesuffix(".0") + unit
    return f"{size_bytes}B"


@dataclass(frozen=True)
class SizeRange:
    """From `min_bytes` to `max_bytes`, both included; `max_bytes` None: no upper end."""

    min_bytes: int
    max_bytes: int | None = None

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str | int) -> SizeRange:
        """A range out of "24GB..80GB", "24GB..", "..80GB" or "24GB". Raises ValueError that shows the form."""
        low, dots, high = str(text).partition("..")
        if not dots:
            return SizeRange(parse_size(text))
        if not low.strip() and not high.strip():
            raise ValueError(f'"{text}" has no end: write "24GB..", "..80GB" or "24GB..80GB"')
        found = SizeRange(parse_size(low) if low.strip() else 0, parse_size(high) if high.strip() else None)
        if found.max_bytes is not None and found.max_bytes < found.min_bytes:
            raise ValueError(f'"{text}" ends below its start: write the smaller size first, such as "24GB..80GB"')
        return found


Version = tuple[int, ...]


def parse_version(text: str) -> Version:
    """(12, 4) of "12.4" or "12.4rc1": the leading dotted numbers. Raises ValueError if there are none."""
    found = re.match(r"\s*v?(\d+(?:\.\d+)*)", text)
    if found is None:
        raise ValueError(f'"{text}" is not a version: write numbers and dots, such as "8.0"')
    return tuple(int(part) for part in found[1].split("."))


@dataclass(frozen=True)
class VersionBounds:
    """Clauses such as (">=", (8, 0)) that must all hold."""

    clauses: tuple[tuple[str, Version], ...]

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str) -> VersionBounds:
        """Bounds out of ">=8.0", ">=8.0,<9.0", "==8.6" or "8.0" (at least). Raises ValueError that shows the form."""
        clauses = []
        for part in str(text).split(","):
            found = _CLAUSE.match(part)
            if found is None:
                raise ValueError(f'"{text}" is not a bound on a version: write ">=8.0", "==8.6" or ">=8.0,<9.0"')
            clauses.append((found[1] or ">=", parse_version(found[2])))
        return VersionBounds(tuple(clauses))

    def admits(self, version: Version) -> bool:
        """Whether a version satisfies every clause; missing parts count as 0, so (8,) equals (8, 0)."""
        return all(_compare(operator, version, bound) for operator, bound in self.clauses)


def _compare(operator: str, version: Version, bound: Version) -> bool:
    width = max(len(version), len(bound))
    left, right = (v + (0,) * (width - len(v)) for v in (version, bound))
    match operator:
        case ">=":
            return left >= right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case "<":
            return left < right
        case _:
            # "==12" admits 12.4: equality speaks of the parts that were written.
            return version[: len(bound)] == bound if len(version) >= len(bound) else left == right


@lru_cache(maxsize=4096)
def name_pattern(text: str) -> re.Pattern[str]:
    """A case-blind pattern out of "A100|H100*": alternatives by "|", "*" for any text, whole words.

    "A10" finds "NVIDIA A10" and not "NVIDIA A100-SXM4-80GB". Raises ValueError for an empty alternative.
    """
    parts = [part.strip() for part in text.split("|")]
    if not all(parts):
        raise ValueError(f'"{text}" has an empty alternative: write "A100|H100*"')
    body = "|".join(".*".join(re.escape(piece) for piece in part.split("*")) for part in parts)
    return re.compile(rf"(?:^|(?<=[^a-z0-9]))(?:{body})(?=$|[^a-z0-9])", re.IGNORECASE)


def matches_name(text: str, name: str) -> bool:
    """Whether the pattern `text` finds a whole word or words in `name`."""
    return name_pattern(text).search(name) is not None
