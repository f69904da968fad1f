"""`after=`: the jobs that must have ended before one may be placed."""

from __future__ import annotations

from typing import Any, get_args

from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.ids import parse_id
from cyxwiz_tasks.protocol.headers import After

#: what may be asked of the end of another job
KINDS: tuple[str, ...] = get_args(After.model_fields["kind"].annotation)
#: a job that waits for more is better off waiting for one that waits for those
AFTER_LIMIT = 1000
_EXAMPLES = 'Write after=handle, after=[first, (second, "any")] or after="JOB_ID:fail"'


def parse_after(value: Any) -> tuple[After, ...]:
    """One or several dependencies: a handle or an id, "ID:kind", or a pair of one and a kind.

    An array is named like a job. Raises InvalidJob that shows the forms.
    """
    several = isinstance(value, list | set | frozenset) or (isinstance(value, tuple) and not _is_pair(value))
    found = dict.fromkeys(_one(item) for item in (value if several else [value]))
    if len(found) > AFTER_LIMIT:
        raise InvalidJob("after", f"names {len(found)} jobs, allowed are {AFTER_LIMIT}", "Put a job in between")
    return tuple(found)


def _is_pair(value: tuple[Any, ...]) -> bool:
    return len(value) == 2 and isinstance(value[1], str) and _id_of(value[1]) is None


def _one(value: Any) -> After:
    if isinstance(value, After):
        return value
    what, kind = value if isinstance(value, tuple) and len(value) == 2 else (value, "ok")
    if isinstance(what, str) and ":" in what and what is value:
        what, _, kind = what.partition(":")
    if kind not in KINDS:
        raise InvalidJob("after", f"{kind!r} is no kind of dependency", f"There are {', '.join(KINDS)}. {_EXAMPLES}")
    job_id = _id_of(what if isinstance(what, str) else getattr(what, "id", None))
    if job_id is None:
        raise InvalidJob("after", f"{str(what)[:60]!r} is no job", _EXAMPLES)
    return After(id=job_id, kind=kind)


def _id_of(text: Any) -> str | None:
    try:
        return parse_id(text)
    except InvalidJob:
        return None
