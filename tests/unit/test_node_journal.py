"""The journal of a node: what its next agent finds after this one has died at any point."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cyxwiz_tasks.protocol.reports import Ended, Process
from workers.courier import end_of_interrupted
from workers.journal import Begun, Journal

IDENTITY = {"node": "n", "incarnation": "i", "job": "j", "attempt": 1}


def begun(token: int) -> Begun:
    return Begun(**IDENTITY, token=token, pid=100 + token, started=1.0, boot="b")


def ended(token: int, text: str = "") -> Ended:
    return Ended(**IDENTITY, token=token, outcome="completed", result={"text": text}, seconds=1.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def opened(path: Path) -> Journal:
    return Journal(path)


def test_the_end_of_what_was_interrupted_says_that_it_had_begun(path):
    opened(path).begun(replace(begun(1), device="cuda:0"))
    older = {name: value for name, value in asdict(begun(2)).items() if name != "device"}
    with path.open("a") as file:
        file.write(json.dumps({"begun": older}) + "\n")
    ends = [end_of_interrupted(one) for one in opened(path).interrupted()]
    assert [end.process for end in ends] == [Process(pid=101, device="cuda:0"), Process(pid=102, device="")]
    assert {end.cause for end in ends} == {"node_lost"}


def test_what_was_begun_and_ended_is_found_again(path):
    journal = opened(path)
    for token in (1, 2, 3):
        journal.begun(begun(token))
    journal.ended(ended(2))
    journal.ended(ended(3))
    journal.told(3)
    # No close: an agent that is killed does not either.
    again = opened(path)
    assert again.interrupted() == [begun(1)]
    assert again.untold() == [ended(2)]
    again.told(1)
    again.told(2)
    last = opened(path)
    assert (last.interrupted(), last.untold()) == ([], [])
    assert path.read_bytes() == b""


def test_what_is_owed_to_the_store_outlives_the_word_on_its_end(path):
    journal = opened(path)
    for token in (1, 2):
        journal.begun(begun(token))
        journal.owes(token, f"j/attempt-{token}")
        journal.ended(ended(token))
        journal.told(token)
    journal.sent(1)
    journal.sent(7)
    again = opened(path)
    assert (again.untold(), again.unsent()) == ([], {2: "j/attempt-2"})
    # Opened, it was written anew.
    once_more = opened(path)
    assert once_more.unsent() == {2: "j/attempt-2"}
    once_more.sent(2)
    assert opened(path).unsent() == {}
    assert path.read_bytes() == b""


def test_every_torn_end_is_tolerated_and_the_next_line_is_whole(path):
    journal = opened(path)
    journal.begun(begun(1))
    whole = path.read_bytes()
    journal.ended(ended(2, "ä"))
    data = path.read_bytes()
    for length in range(len(whole), len(data)):
        path.write_bytes(data[:length])
        again = opened(path)
        assert again.interrupted() == [begun(1)]
        assert again.untold() in ([], [ended(2, "ä")])
        again.ended(ended(3))
        assert ended(3) in opened(path).untold()


def test_noise_is_left_out(path):
    path.write_bytes(b'\xff\xfe\n[]\n{"ended": {"job": 1}}\n{"begun": {"token": 1}}\n{"other": 2}\nnull\n')
    journal = opened(path)
    assert (journal.interrupted(), journal.untold()) == ([], [])
    journal.begun(begun(4))
    assert opened(path).interrupted() == [begun(4)]


def test_it_does_not_grow_with_what_is_told(path):
    journal = opened(path)
    journal.begun(begun(1))
    for token in range(2, 3_000):
        journal.begun(begun(token))
        journal.ended(ended(token))
        journal.told(token)
    assert path.stat().st_size < 1_000_000
    assert opened(path).interrupted() == [begun(1)]


def test_an_end_is_on_the_disk_before_it_is_sent(path, monkeypatch):
    synced = []
    sync = os.fdatasync

    def watched(fd: int) -> None:
        synced.append(path.read_bytes())
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", watched)
    journal = opened(path)
    journal.begun(begun(1))
    journal.told(1)
    assert synced == []
    journal.ended(ended(2))
    assert len(synced) == 1
    assert b'"completed"' in synced[0]


def test_a_full_disk_costs_nothing_but_the_journal(path, monkeypatch, caplog):
    journal = opened(path)
    journal.ended(ended(1))
    write = os.write
    room = 30

    def full(fd: int, data: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(fd, data[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "fsync", lambda fd: full(fd, b"\n"))
    journal.ended(ended(2))
    journal.ended(ended(3))
    assert sum("cannot be written" in record.message for record in caplog.records) == 1
    assert journal.untold() == [ended(1), ended(2), ended(3)]
    monkeypatch.undo()
    journal.ended(ended(4))
    assert opened(path).untold() == [ended(1), ended(2), ended(3), ended(4)]
