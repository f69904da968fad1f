"""What owners and projects have of the cluster, for people to see, and what they may have, for people to set."""

from __future__ import annotations

import logging
from typing import Any

from broker.scheduler.fair_share import Account
from broker.scheduler.limits import OwnerLimits
from broker.scheduler.log_lines import line
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.protocol.commands import SetLimits
from db import limits
from db.limits import OwnerLimit

log = logging.getLogger(__name__)

_COUNTS = ("running", "waiting")


def set_limits(turn: Turn, command: SetLimits) -> dict[str, Any]:
    """Change an owner's limits and weight. Returns all of them. Raises InvalidSettings."""
    shares = turn.memory.shares
    try:
        changed = shares.limits.of(command.owner)._replace(**command.changes)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidSettings(f"{', '.join(command.changes)}: there are {', '.join(OwnerLimits._fields)}") from None
    _check(changed)
    changed = changed._replace(running=_whole(changed.running), waiting=_whole(changed.waiting))
    limits.set_limit(
        turn.tx, OwnerLimit(command.owner, changed.weight, changed.running, changed.waiting, changed.per_minute)
    )
    turn.memory.backlog.reconsider(shares.set_limits(command.owner, changed))
    log.info(line("limits_set", owner=command.owner, **command.changes))
    return {"owner": command.owner, **changed._asdict()}


def _whole(count: float | None) -> int | None:
    return None if count is None else int(count)


def _check(changed: OwnerLimits) -> None:
    if not isinstance(changed.weight, int | float) or changed.weight <= 0:
        raise InvalidSettings(
            f"weight: {_shown(changed.weight)} is not above 0: write a number, 2 for twice as much as 1"
        )
    for name in _COUNTS:
        value = getattr(changed, name)
        if value is not None and (value != int(value) or not 0 <= value < 2**31):
            raise InvalidSettings(
                f"{name}: {_shown(value)} is no number of jobs: write 0 or more, or none for no limit"
            )
    if changed.per_minute is not None and changed.per_minute <= 0:
        raise InvalidSettings(
            f"per_minute: {_shown(changed.per_minute)} is not above 0: write how many, or none for no limit"
        )


def _shown(value: float | None) -> str:
    """As it was written: numbers travel as floats."""
    return "none" if value is None else f"{value:g}"


def usage(turn: Turn) -> list[dict[str, Any]]:
    """Each project, followed by its owners; those who had most come first."""
    memory = turn.memory
    memory.settle()
    waiting: dict[Account, int] = {}
    for queue in memory.backlog:
        for account in (queue.account, queue.account.parent):
            if account is not None:
                waiting[account] = waiting.get(account, 0) + len(queue)

    def order(account: Account) -> tuple[float, str, bool, float, str]:
        project = account.parent or account
        return -project.standing, project.project, account is not project, -account.standing, account.owner or ""

    return [_row(turn, account, waiting.get(account, 0)) for account in sorted(memory.shares, key=order)]


def _row(turn: Turn, account: Account, waiting: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "project": account.project,
        "owner": account.owner,
        "past": account.past,
        "present": account.present,
        "weight": account.weight,
        "standing": account.standing,
        "running": account.running,
        "waiting": waiting,
    }
    if account.owner is not None:
        row["limits"] = turn.memory.shares.limits.of(account.owner)._asdict()
    return row
