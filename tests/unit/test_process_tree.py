"""Real processes that try to get away: every one of them is gone within seconds."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers.attempt_cgroup import AttemptCgroup
from workers.out_of_memory import oom_kill_count
from workers.process_table import find_process, process_table
from workers.process_tree import kill_tree, orphans_of, started_at, tree_memory_bytes

DEADLINE_SECONDS = 20.0

#: Every job below leads its session and adopts orphans, as the real job's process does, and marks who belongs to it.
PRELUDE = """
import os, signal, sys, time
from cyxwiz_tasks.runtime.prctl import become_subreaper
def sleep_for_ever():
    while True:
        time.sleep(3600)
def ready():
    open(sys.argv[1], "w").close()
"""

IGNORES_SIGTERM = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready(); sleep_for_ever()
"""

SETSID_GRANDCHILD = """
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid(); ready()
    sleep_for_ever()
sleep_for_ever()
"""

DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); sleep_for_ever()
    os._exit(0)
os.wait(); sleep_for_ever()
"""

FORK_STORM = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
ready()
while True:
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.005)
        os._exit(0)
    time.sleep(0.002)
"""

WALKER = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    ready()
    while True:                       # a process that is never the same one for long
        if os.fork() != 0:
            os._exit(0)
        time.sleep(0.001)
sleep_for_ever()
"""

STOPPED_CHILD = """
if os.fork() == 0:
    ready(); os.kill(os.getpid(), signal.SIGSTOP)
sleep_for_ever()
"""

TRICKS = {
    "ignores SIGTERM": IGNORES_SIGTERM,
    "setsid grandchild": SETSID_GRANDCHILD,
    "double-forked daemon": DAEMON,
    "fork storm": FORK_STORM,
    "walking process": WALKER,
    "stopped child": STOPPED_CHILD,
}


class Job:
    """A job's process. `mark` is in the environment of everybody it starts, so survivors are found, however hidden."""

    def __init__(self, folder: Path, trick: str, subreaper: bool = True) -> None:
        self.mark = f"CYXWIZ_TEST_MARK={folder.name}-{os.getpid()}-{time.monotonic_ns()}"
        ready = folder / "ready"
        code = PRELUDE + ("become_subreaper()\n" if subreaper else "") + trick
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(ready)], env={**os.environ, name: value}, start_new_session=True
        )
        wait_until(ready.exists, "the job started")

    def living(self) -> list[int]:
        found = []
        for row in process_table().values():
            try:
                environment = Path(f"/proc/{row.pid}/environ").read_bytes()
            except OSError:
                continue
            if row.alive and row.pid != os.getpid() and self.mark.encode() in environment:
                found.append(row.pid)
        return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs = list[Job]()

    def start_job(trick: str, subreaper: bool = True) -> Job:
        folder = tmp_path / str(len(jobs))
        folder.mkdir()
        jobs.append(Job(folder, trick, subreaper))
        return jobs[-1]

    yield start_job
    for job in jobs:
        for pid in job.living():
            kill_tree(pid)
        job.process.kill()
        job.process.wait()


@pytest.mark.parametrize("grace_seconds", [0.0, 0.2])
@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
def test_nobody_gets_away(start: Callable[..., Job], trick: str, grace_seconds: float) -> None:
    job = start(trick)
    assert job.process.pid in job.living()
    began = time.monotonic()
    assert kill_tree(job.process.pid, grace_seconds) == []
    assert time.monotonic() - began < DEADLINE_SECONDS
    assert job.living() == []
    assert job.process.wait(DEADLINE_SECONDS) < 0  # the exit status was left to the parent


def test_grace_lets_a_job_clean_up(start: Callable[..., Job], tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    trick = f"""
def save(*_):
    open({str(saved)!r}, "w").close(); os._exit(7)
signal.signal(signal.SIGTERM, save)
ready(); sleep_for_ever()
"""
    job = start(trick)
    assert kill_tree(job.process.pid, grace_seconds=DEADLINE_SECONDS) == []
    assert saved.exists()
    assert job.process.wait(DEADLINE_SECONDS) == 7


def test_what_a_dead_job_left_in_its_session_goes_too(start: Callable[..., Job]) -> None:
    job = start("if os.fork() == 0:\n    ready(); sleep_for_ever()\nsleep_for_ever()", subreaper=False)
    started = started_at(job.process.pid)
    job.process.kill()
    job.process.wait()
    assert len(job.living()) == 1
    assert kill_tree(job.process.pid, started=started) == []
    assert job.living() == []


def test_orphans_come_to_the_reaper(start: Callable[..., Job]) -> None:
    """The forkserver's part: a daemon in a session of its own outlives the job and is found under the reaper."""
    reaper = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ready(); sleep_for_ever()
        os._exit(0)
    os.wait(); os._exit(0)
os.wait(); sleep_for_ever()
"""
    job = start(reaper)
    wait_until(lambda: len(orphans_of(job.process.pid, known_pids=[])) == 1, "the daemon came to the reaper")
    (orphan,) = orphans_of(job.process.pid, known_pids=[])
    assert orphans_of(job.process.pid, known_pids=[orphan.pid]) == []
    assert kill_tree(orphan.pid, started=orphan.started) == []
    assert job.living() == [job.process.pid]


def test_a_reused_pid_is_left_alone(start: Callable[..., Job]) -> None:
    job = start(IGNORES_SIGTERM)
    started = started_at(job.process.pid)
    assert started is not None
    assert kill_tree(job.process.pid, started=started - 1) == []
    assert job.living() == [job.process.pid]


def test_the_own_process_is_refused() -> None:
    for pid in (0, 1, os.getpid()):
        with pytest.raises(ValueError, match="not a job"):
            kill_tree(pid)


def test_processes_with_strange_names_are_read(tmp_path: Path) -> None:
    script = tmp_path / ") R 1 1 ("
    script.symlink_to("/bin/sleep")
    process = subprocess.Popen([script, "60"], start_new_session=True)
    try:
        wait_until(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("sleep"), "exec")
        row = find_process(process.pid)
        assert row is not None
        assert (row.parent_pid, row.session, row.alive) == (os.getpid(), process.pid, True)
    finally:
        process.kill()
        process.wait()
    assert find_process(process.pid) is None


def test_memory_of_a_tree(start: Callable[..., Job]) -> None:
    job = start("block = bytearray(os.urandom(64 << 20))\nif os.fork() == 0:\n    ready()\nsleep_for_ever()")
    held_bytes = tree_memory_bytes(job.process.pid)
    # Both processes map the block; it is counted once.
    assert 64 << 20 < held_bytes < 128 << 20
    kill_tree(job.process.pid)
    assert tree_memory_bytes(job.process.pid) == 0


def test_out_of_memory_kills_are_counted() -> None:
    assert oom_kill_count() >= 0


def test_a_job_dies_with_its_parent(start: Callable[..., Job]) -> None:
    parent = """
from cyxwiz_tasks.runtime.prctl import die_with_parent
pid = os.getpid()
if os.fork() == 0:
    os.setsid(); assert die_with_parent(pid); ready()
sleep_for_ever()
"""
    job = start(parent)
    job.process.kill()
    job.process.wait()
    wait_until(lambda: job.living() == [], "the child ended with its parent")


@pytest.mark.skipif(not AttemptCgroup.available(), reason="no writable cgroup v2 here")
class TestAttemptCgroup:
    @pytest.mark.parametrize("trick", [DAEMON, FORK_STORM, WALKER], ids=["daemon", "fork storm", "walking process"])
    def test_kills_everybody_at_once(self, start: Callable[..., Job], tmp_path: Path, trick: str) -> None:
        go = tmp_path / "go"
        job_waits = f"ready()\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        job = start(job_waits + trick, subreaper=False)
        cgroup = AttemptCgroup.create(f"test-{os.getpid()}-{job.process.pid}")
        assert [left.folder for left in AttemptCgroup.leftovers(f"test-{os.getpid()}-")] == [cgroup.folder]
        cgroup.add(job.process.pid)
        go.touch()
        wait_until(lambda: len(cgroup.pids()) > 1, "the job started others")
        job.process.kill()
        job.process.wait()
        cgroup.kill()
        assert cgroup.wait_empty(DEADLINE_SECONDS)
        assert job.living() == []
        cgroup.remove()
        assert AttemptCgroup.leftovers(f"test-{os.getpid()}-") == []

    def test_one_in_use_is_not_empty(self, start: Callable[..., Job]) -> None:
        job = start(IGNORES_SIGTERM)
        cgroup = AttemptCgroup.create(f"test-{os.getpid()}-{job.process.pid}")
        cgroup.add(job.process.pid)
        assert not cgroup.wait_empty(0.05)
        with pytest.raises(FileExistsError):
            AttemptCgroup.create(f"test-{os.getpid()}-{job.process.pid}")
        cgroup.kill()
        assert cgroup.wait_empty(DEADLINE_SECONDS)
        cgroup.remove()


def test_a_cgroup_name_is_no_path() -> None:
    with pytest.raises(ValueError, match="cgroup name"):
        AttemptCgroup.create("../elsewhere")
