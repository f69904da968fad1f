"""What travels in the header `cyxwiz`: made from a task's own settings, changed by the options of one call."""

from __future__ import annotations

import getpass
import os
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from cyxwiz_tasks.dependency import parse_after
from cyxwiz_tasks.errors import InvalidJob, ProtocolError
from cyxwiz_tasks.protocol.headers import VERSION, JobHeader
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, HEADER
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority

#: Options of `apply_async()` and `submit()` that are ours and not Celery's.
JOB_OPTIONS = (
    *("resources", "priority", "idempotency_key", "time_limit", "start_by", "deadline", "name", "owner", "project"),
    *("max_retries", "retry_on", "no_retry_on", "exclusive", "after"),
)

_UNITS_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_EXCEPTION_NAME = re.compile(r"[A-Za-z_][\w.]{0,199}")
#: as many tries as a person may still want to read about
RETRIES_LIMIT = 1000
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*")

#: kombu keeps four lists, 0 first and 9 last: its steps are our classes.
_PRIORITY_BELOW = ((3, Priority.CRITICAL), (6, Priority.HIGH), (9, Priority.NORMAL), (10, Priority.LOW))


@lru_cache(maxsize=1)
def os_user() -> str:
    """The name of whoever runs this program, or the number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def parse_seconds(value: str | float | timedelta | datetime, field: str = "time_limit") -> float:
    """Seconds out of "4h", "90m", "2d", a number of seconds or a timedelta; a datetime (UTC without a zone) is counted
    from now. Raises InvalidJob that shows the form.
    """
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        seconds = float(found[1]) * _UNITS_SECONDS[found[2]]
    elif isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, datetime) and field != "time_limit":
        seconds = ((value if value.tzinfo else value.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        seconds = 0.0
    # One year: beyond it is a mistake in the unit. The comparison is also false for a NaN.
    if not 0 < seconds <= 366 * 86400:
        raise InvalidJob(field, f"{value!r} is not a duration", 'Write "30m", "4h", "2d" or a number of seconds')
    return seconds


def parse_priority(value: str | int) -> Priority:
    """Our class of a priority, by name or as Celery's number (0 first to 9 last). Raises InvalidJob otherwise."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9:
        return next(priority for below, priority in _PRIORITY_BELOW if value < below)
    try:
        return Priority(str(value))
    except ValueError:
        names = ", ".join(f'"{name}"' for name in Priority)
        raise InvalidJob(
            "priority", f"{value!r} is not a priority", f"Write one of {names}, or 0 (first) to 9"
        ) from None


def changed(header: JobHeader, options: dict[str, Any]) -> JobHeader:
    """The header with what `options` says; None means that nothing was said.

    Raises InvalidJob that names the option.
    """
    given = {name: options[name] for name in JOB_OPTIONS if options.get(name) is not None}
    if not given:
        return header
    if "resources" in given:
        given["resources"] = Resources.parse(given["resources"])
    if "priority" in given:
        given["priority"] = parse_priority(given["priority"])
    for name in ("time_limit", "start_by", "deadline"):
        if name in given:
            given[f"{name}_seconds"] = parse_seconds(given.pop(name), name)
    _check_retries(given)
    if "after" in given:
        given["after"] = parse_after(given["after"])
    for name in ("idempotency_key", "name", "owner", "project"):
        if name in given:
            check_text(name, given[name])
    return header.model_copy(update=given)


def _check_retries(given: dict[str, Any]) -> None:
    """Raises InvalidJob. A class of exceptions is turned into its name."""
    retries = given.get("max_retries", 0)
    if not isinstance(retries, int) or isinstance(retries, bool) or not 0 <= retries <= RETRIES_LIMIT:
        raise InvalidJob("max_retries", f"{retries!r} is not a count", f"Write a number from 0 to {RETRIES_LIMIT}")
    if not isinstance(given.get("exclusive", False), bool):
        raise InvalidJob("exclusive", f"{given['exclusive']!r} is not a truth value", "Write True or False")
    for field in ("retry_on", "no_retry_on"):
        if field in given:
            one = given[field]
            several = one if isinstance(one, list | tuple | set | frozenset) else (one,)
            given[field] = tuple(_exception_name(field, value) for value in several)


def _exception_name(field: str, value: Any) -> str:
    if isinstance(value, type) and issubclass(value, BaseException):
        return value.__qualname__ if value.__module__ == "builtins" else f"{value.__module__}.{value.__qualname__}"
    if not isinstance(value, str) or not _EXCEPTION_NAME.fullmatch(value):
        raise InvalidJob(field, f"{value!r} is no exception", 'Write a class, or names such as "ValueError"')
    return value


def dump(header: JobHeader) -> dict[str, Any]:
    """The header as JSON, without what is at its default."""
    return header.model_dump(mode="json", exclude_defaults=True) | {"version": VERSION}


def fold(options: dict[str, Any], own: JobHeader | None = None) -> dict[str, Any]:
    """Celery's options, with ours moved into the header: the one that is there already, or else `own`.

    Raises InvalidJob for an option that cannot be used, ProtocolError for a header that cannot be read.
    """
    kept = {name: value for name, value in options.items() if name not in JOB_OPTIONS}
    headers = dict(kept.get("headers") or {})
    # A retry or a replacement starts from its request's headers; the next placement is the scheduler's to make.
    headers.pop(ASSIGNMENT_HEADER, None)
    given = headers.get(HEADER)
    if given is not None and not any(options.get(name) is not None for name in JOB_OPTIONS):
        return kept | {"headers": headers}
    try:
        header = JobHeader.model_validate(given) if given is not None else own or JobHeader(owner=os_user())
    except ValidationError as error:
        raise ProtocolError(f"the header {HEADER!r} cannot be read: {error.errors()[0]['msg']}") from None
    kept["headers"] = headers | {HEADER: dump(changed(header, options))}
    return kept


def check_text(name: str, value: Any) -> str:
    """The value. Raises InvalidJob if it is no short text that people can read."""
    if not isinstance(value, str) or not value.strip() or len(value) > 200 or not value.isprintable():
        raise InvalidJob(name, f"{str(value)[:40]!r} cannot be used", "Write a text of 1 to 200 printable characters")
    return value
