"""A node's own conditions on the jobs that it takes, such as `owner in ["lab-a", "lab-b"] and priority >= normal`.

The text is read as a Python expression and nothing of it is ever executed: what is not listed here is refused, with the
place where it stands.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from cyxwiz_tasks.quantities import parse_size
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority

LONGEST = 1000


class Applicant(NamedTuple):
    """Whose job it is, and how urgent."""

    owner: str = ""
    project: str = ""
    priority: Priority = Priority.NORMAL


class _Job(NamedTuple):
    """What a condition may speak of. `gpu_memory` and `ram` are the lower ends of what the job asks for, in bytes."""

    owner: str
    project: str
    priority: int
    gpus: int
    gpu_memory: int
    shared: bool
    cpus: int
    ram: int


#: what each is: only like is compared with like
_KINDS = {
    "owner": "text",
    "project": "text",
    "priority": "priority",
    "gpus": "number",
    "gpu_memory": "size",
    "shared": "truth",
    "cpus": "number",
    "ram": "size",
}
_ORDERED = ("priority", "number", "size")
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_RANKS = {str(priority): priority.rank for priority in Priority}
_KNOWN = f"Known are {', '.join(_KINDS)}, and the priorities {', '.join(_RANKS)}"


class _Term(NamedTuple):
    """A part of the expression: what kind of value it has, and how it is had of a job."""

    kind: str
    of: Callable[[_Job], Any]
    at: ast.expr
    #: a literal may still become a size or a priority
    literal: bool = False


class Condition:
    """A text that was read; `holds` may be asked any number of times."""

    def __init__(self, text: str, term: _Term) -> None:
        self.text, self._term = text, term

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str) -> Condition:
        """Raises ValueError that names the place and what may stand there."""
        if len(text) > LONGEST:
            raise ValueError(f"has {len(text)} characters: {LONGEST} may be written")
        try:
            parsed = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"at character {error.offset or 1}: {error.msg.rstrip('?')}. {_FORM}") from None
        except (ValueError, RecursionError, MemoryError):
            raise ValueError(f"cannot be read. {_FORM}") from None
        term = _read(parsed)
        if term.kind != "truth":
            raise _refused(parsed, f"this is {_a(term.kind)}, not a condition. {_FORM}")
        return Condition(text, term)

    def holds(self, resources: Resources, applicant: Applicant) -> bool:
        """Whether a job that needs this, of this owner, is taken."""
        job = _Job(
            applicant.owner,
            applicant.project,
            applicant.priority.rank,
            resources.gpus,
            resources.gpu_memory_bytes.min_bytes,
            resources.shared,
            resources.cpus,
            resources.ram_bytes.min_bytes,
        )
        return bool(self._term.of(job))


_FORM = 'Write for example: owner in ["lab-a", "lab-b"] and priority >= normal'


def _read(node: ast.expr) -> _Term:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = [_truth(value) for value in values]
            every = all if isinstance(op, ast.And) else any
            return _Term("truth", lambda job: every(part(job) for part in parts), node)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            part = _truth(operand)
            return _Term("truth", lambda job: not part(job), node)
        case ast.Compare():
            return _compared(node)
        case ast.Name(id=name):
            return _named(name, node)
        case ast.Constant(value=bool() | str() | int() | float() as value):
            kind = {bool: "truth", str: "text"}.get(type(value), "number")
            return _constant(kind, value, node)
        case _:
            raise _refused(node, f'"{ast.unparse(node)[:40]}" may not stand here. {_FORM}')


def _named(name: str, node: ast.expr) -> _Term:
    if name in _KINDS:
        return _Term(_KINDS[name], operator.attrgetter(name), node)
    if name in _RANKS:
        return _constant("priority", _RANKS[name], node)
    raise _refused(node, f'"{name}" is not known. {_KNOWN}; a text stands in quotes')


def _truth(node: ast.expr) -> Callable[[_Job], Any]:
    term = _read(node)
    if term.kind != "truth":
        raise _refused(node, f'"{ast.unparse(node)[:40]}" is {_a(term.kind)}: compare it with something')
    return term.of


def _compared(node: ast.Compare) -> _Term:
    """`a < b <= c` holds if each pair does."""
    pairs: list[Callable[[_Job], bool]] = []
    left = _read(node.left)
    for sign, right_node in zip(node.ops, node.comparators, strict=True):
        if type(sign) not in _COMPARISONS:
            raise _refused(right_node, "is and is not are no comparisons here: write == or !=")
        if isinstance(sign, ast.In | ast.NotIn):
            pairs.append(_member(left, sign, right_node))
            continue
        right = _read(right_node)
        left_value, right_value = _alike(left, right), _alike(right, left)
        if left_value.kind not in _ORDERED and not isinstance(sign, ast.Eq | ast.NotEq):
            raise _refused(right_node, f"{_a(left_value.kind)} is not more or less than another: write ==, != or in")
        pairs.append(_pair(_COMPARISONS[type(sign)], left_value.of, right_value.of))
        left = right
    return _Term("truth", lambda job: all(pair(job) for pair in pairs), node)


def _member(left: _Term, sign: ast.cmpop, node: ast.expr) -> Callable[[_Job], bool]:
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        raise _refused(node, 'in takes a list on its right: ["lab-a", "lab-b"]')
    members = [_read(element) for element in node.elts]
    if any(not member.literal for member in members):
        raise _refused(node, "a list holds texts, numbers, sizes or priorities and nothing else")
    terms = [_alike(member, left).of for member in members]
    return _pair(_COMPARISONS[type(sign)], left.of, lambda job: [of(job) for of in terms])


def _pair(
    compare: Callable[[Any, Any], bool], left: Callable[[_Job], Any], right: Callable[[_Job], Any]
) -> Callable[[_Job], bool]:
    return lambda job: compare(left(job), right(job))


def _alike(term: _Term, other: _Term) -> _Term:
    """The term, as what it is compared with: "24GB" is a size beside `ram`, and "high" a priority beside `priority`."""
    if term.kind == other.kind or (other.literal and not term.literal):
        return term
    if term.literal and other.kind == "size" and term.kind in ("text", "number"):
        try:
            return _constant("size", parse_size(term.of(_NOBODY)), term.at)
        except ValueError as error:
            raise _refused(term.at, str(error)) from None
    if term.literal and other.kind == "priority" and term.of(_NOBODY) in _RANKS:
        return _constant("priority", _RANKS[term.of(_NOBODY)], term.at)
    raise _refused(term.at, f"{_a(term.kind)} is compared with {_a(other.kind)}")


def _constant(kind: str, value: Any, at: ast.expr) -> _Term:
    return _Term(kind, lambda job: value, at, literal=True)


def _refused(node: ast.expr, reason: str) -> ValueError:
    return ValueError(f"at character {node.col_offset + 1}: {reason}")


def _a(kind: str) -> str:
    return {"truth": "yes or no"}.get(kind, f"a {kind}")


_NOBODY = _Job("", "", 0, 0, 0, False, 0, 0)
