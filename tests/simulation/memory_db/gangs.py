"""`db.gangs` in memory."""

from __future__ import annotations

from collections.abc import Sequence

from db.attempts import Start
from db.gangs import Member, MemberEnd, NewMember
from db.moves import LIVE
from tests.simulation.memory_db.tables import MemberRow, Tx


def place(tx: Tx, members: Sequence[NewMember]) -> dict[tuple[int, int], int]:
    placed = {}
    for new in members:
        job_id = tx.tables.attempts[new.lead].job_id
        token = new.lead if new.rank == 0 else tx.tables.next_token(job_id)
        tx.put(tx.tables.members, token, MemberRow(token, new))
        placed[new.lead, new.rank] = token
    return placed


def start(tx: Tx, reports: Sequence[Start]) -> int:
    moved = 0
    for report in reports:
        row = tx.tables.members.get(report.token)
        if row is not None and row.new.node_id == report.node_id and row.started_at is None and _is_live(tx, row):
            tx.change(row).started_at = tx.now
            moved += 1
    return moved


def end(tx: Tx, ends: Sequence[MemberEnd]) -> set[int]:
    noted = set()
    for one in ends:
        row = tx.tables.members.get(one.token)
        if row is None or row.ended_at is not None or not _is_live(tx, row):
            continue
        if (one.node_id, one.job_id) == (row.new.node_id, tx.tables.attempts[row.new.lead].job_id):
            tx.change(row)
            row.ended_at, row.report = tx.now, one.report
            noted.add(one.token)
    return noted


def close(tx: Tx, leads: Sequence[int]) -> None:
    for row in tx.tables.members.values():
        if row.new.lead in leads:
            tx.change(row)
            row.ended_at = row.ended_at if row.ended_at is not None else tx.now
            row.report = {k: v for k, v in row.report.items() if k != "result"} if row.report is not None else None


def live(tx: Tx) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    rows = sorted((row for row in tx.tables.members.values() if _is_live(tx, row)), key=lambda row: row.new.rank)
    for row in rows:
        new, job_id = row.new, tx.tables.attempts[row.new.lead].job_id
        member = Member(
            row.token,
            job_id,
            new.rank,
            new.node_id,
            new.incarnation,
            tuple(new.gpus),
            new.gpu_memory_bytes,
            row.started_at is not None,
            row.report,
        )
        found.setdefault(job_id, []).append(member)
    return found


def _is_live(tx: Tx, row: MemberRow) -> bool:
    return tx.tables.attempts[row.new.lead].state in LIVE
