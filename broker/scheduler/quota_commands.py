"""What people set and see of quotas."""

from __future__ import annotations

import logging
from typing import Any

from broker.scheduler.log_lines import line
from broker.scheduler.quotas import Quota
from broker.scheduler.turn import Turn
from cyxwiz_tasks.errors import InvalidSettings, NotFound
from cyxwiz_tasks.protocol.commands import SetQuota
from db import quotas as recorded

log = logging.getLogger(__name__)


def set_quota(turn: Turn, command: SetQuota) -> dict[str, Any]:
    """Change a project's quota, or remove it. Returns it. Raises InvalidSettings, and NotFound if there is none."""
    shares, backlog = turn.memory.shares, turn.memory.backlog
    quota: Quota | None = None
    if command.changes is not None:
        quota = _changed(shares.quotas.of(command.project), command.changes)
        recorded.set_quota(turn.tx, command.project, quota._asdict())
    elif not recorded.remove(turn.tx, command.project):
        raise NotFound(f"project {command.project} has no quota: `cyxwiz quotas` lists those there are")
    shares.set_quota(command.project, quota)
    backlog.reconsider_quotas()
    turn.memory.settle()
    log.info(line("quota_set", project=command.project, **(quota or Quota())._asdict()))
    return _row(turn, command.project)


def quotas(turn: Turn) -> list[dict[str, Any]]:
    """Each project that owns or holds something; nobody's holdings are known while nobody has a quota."""
    return [_row(turn, project) for project in turn.memory.shares.quotas]


def _row(turn: Turn, project: str) -> dict[str, Any]:
    known = turn.memory.shares.quotas
    held, borrowed = known.held(project), known.borrowed(project)
    return {
        "project": project,
        **known.of(project)._asdict(),
        "held": held._asdict(),
        "borrowed": borrowed._asdict(),
    }


def _changed(quota: Quota, changes: dict[str, float | None]) -> Quota:
    for name, value in changes.items():
        if name not in Quota._fields:
            raise InvalidSettings(f"{name}: there are {', '.join(Quota._fields)}")
        if name == "weight":
            if value is None or value <= 0:
                shown = "none" if value is None else f"{value:g}"
                raise InvalidSettings(f"weight: {shown} is not above 0: write a number, 2 for twice as much as 1")
        elif value is None:
            if name in ("gpus", "cpus"):
                raise InvalidSettings(f"{name}: write how many the project owns; 0 for none")
        elif value != int(value) or not 0 <= value < 2**31:
            raise InvalidSettings(f"{name}: {value:g} is not a whole number: write 0 or more")
    numbers = {name: value if name == "weight" or value is None else int(value) for name, value in changes.items()}
    return Quota(**(quota._asdict() | numbers))
