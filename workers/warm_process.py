"""Processes that wait for a job: forked, imported, finalised; and the fork server that they come from."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cyxwiz_tasks
from cyxwiz_tasks.errors import CyxwizError
from cyxwiz_tasks.runtime.forkserver import NUMBER
from cyxwiz_tasks.runtime.pipe import STACK_DUMP_SIGNAL, Frame, Pipe
from workers.attempt_cgroup import AttemptCgroup, CgroupUnavailable
from workers.out_of_memory import oom_kill_count
from workers.process_table import find_process
from workers.process_tree import ask_tree_to_end, kill_tree, orphans_of, signal_each, started_at

log = logging.getLogger(__name__)

_END_SECONDS = 10.0


class ForkFailed(CyxwizError):
    """No process could be started for a job: the machine is out of memory or of processes, or torch cannot load."""


class WarmProcess:
    """A process that waits for a job, or runs it. Owned by one thread at a time."""

    def __init__(self, server: ForkServer, pid: int, pipe: Pipe, log_fd: int, status_fd: int) -> None:
        self._server = server
        self.pid = pid
        self.pipe = pipe
        #: read end of the process's standard output and error
        self.log_fd = log_fd
        #: turns readable when the process has ended
        self.status_fd = status_fd
        #: tells this process from a later one with the same pid
        self.started = started_at(pid)
        self._exit_code: int | None = None
        self._ended = False
        self._undead: list[int] = []
        self._cgroup = _cgroup_of(f"{server.mark}-{pid}", pid)
        self._memory_kills = oom_kill_count(self._cgroup)

    def give(self, job: Frame) -> None:
        """Send it its job. Raises OSError once it is dead."""
        try:
            self.pipe.send(job)
        finally:
            # It may have waited for hours, while the kernel killed others. Only now: the job does not wait for that.
            self._memory_kills = oom_kill_count(self._cgroup)

    def has_ended(self) -> bool:
        """Whether the process is gone already."""
        poll = select.poll()
        poll.register(self.status_fd, select.POLLIN)
        return self._exit_code is not None or bool(poll.poll(0))

    def read_exit_code(self) -> int:
        """Wait for the end and return the exit code; negative: the signal that ended it."""
        if self._exit_code is None:
            number = os.read(self.status_fd, NUMBER.size)
            # Nothing there: the fork server itself was killed, and this process with it.
            self._exit_code = NUMBER.unpack(number)[0] if len(number) == NUMBER.size else -9
        return self._exit_code

    def kernel_ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed for memory since this process got its job."""
        return oom_kill_count(self._cgroup) > self._memory_kills

    def ask_tree_to_end(self) -> None:
        """SIGTERM to the process and everything it started; it ends whoever does not handle it."""
        ask_tree_to_end(self.pid, started=self.started)

    def dump_stacks(self) -> None:
        """Have the process write into its log where each of its threads is, even if it is stopped."""
        row = find_process(self.pid)
        if row is not None and row.started == self.started:
            signal_each(STACK_DUMP_SIGNAL, [row])
            signal_each(signal.SIGCONT, [row])

    def end_tree(self) -> list[int]:
        """End the process and everything it started. Returns the pids that would not die."""
        if self._ended:
            return []
        self._ended = True
        left = []
        if self._cgroup is None:
            left = kill_tree(self.pid, started=self.started)
        else:
            self._cgroup.kill()
            left = [] if self._cgroup.wait_empty(_END_SECONDS) else self._cgroup.pids()
            with suppress(OSError):
                self._cgroup.remove()
        self._server.forget(self.pid)
        self._undead = left
        return left

    def survivors(self) -> list[int]:
        """Of those that would not die, who still lives: they hang in the kernel, and so does the GPU that they hold."""
        self._undead = [pid for pid in self._undead if (row := find_process(pid)) is not None and row.alive]
        return self._undead

    def close(self) -> None:
        """Let go of the descriptors. The tree must have ended."""
        self.pipe.close()
        for fd in (self.log_fd, self.status_fd):
            os.close(fd)


class ForkServer:
    """The agent's end of `cyxwiz_tasks.runtime.forkserver`, started again whenever it is gone."""

    def __init__(
        self, environment: dict[str, str], mark: str, code_paths: Sequence[str] = (), preload: Sequence[str] = ()
    ) -> None:
        """`mark` begins the names of the processes' control groups, by which a later agent finds what is left.

        `code_paths`: where the modules of most jobs will lie. `preload`: those that are imported for all of them.
        """
        self._environment, self.mark = environment, mark
        self._words = [os.pathsep.join(code_paths), *preload]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._living: set[int] = set()

    def fork(self) -> WarmProcess:
        """A new process that is ready for a job. Raises ForkFailed."""
        ours, theirs, log_read, log_write, status_read, status_write = self._ends()
        try:
            with self._lock:
                socket.send_fds(self._started(), [b"f"], [theirs.fileno(), log_write, status_write])
                os.close(status_write)
                status_write = -1
                number = os.read(status_read, NUMBER.size)
                if len(number) != NUMBER.size:
                    raise ForkFailed
                pid = NUMBER.unpack(number)[0]
                self._living.add(pid)
        except OSError as error:
            self._let_go(ours.detach(), log_read, status_read)
            raise ForkFailed(f"{ForkFailed.__doc__} ({error})") from error
        except ForkFailed:
            self._let_go(ours.detach(), log_read, status_read)
            raise
        finally:
            theirs.close()
            self._let_go(log_write, status_write)
        process = WarmProcess(self, pid, Pipe(ours.detach()), log_read, status_read)
        try:
            process.pipe.receive()
        except (EOFError, OSError):
            output = os.read(log_read, 4096).decode(errors="replace")
            process.end_tree()
            process.close()
            raise ForkFailed(f"a job's process ended before it was ready: {output[-500:]}") from None
        return process

    def forget(self, pid: int) -> None:
        """The process has ended; end what it left to its reaper."""
        with self._lock:
            self._living.discard(pid)
            if self._process is None:
                return
            # Under the lock, so that no fork is under way whose pid is not known yet.
            orphans = orphans_of(self._process.pid, self._living)
        for orphan in orphans:
            kill_tree(orphan.pid, started=orphan.started)

    def stop(self) -> None:
        """End the server and with it every process that came from it."""
        with self._lock:
            if self._process is None or self._control is None:
                return
            self._control.close()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                kill_tree(self._process.pid)
                self._process.wait()
            self._process = self._control = None

    def _started(self) -> socket.socket:
        if self._process is not None and self._control is not None:
            if self._process.poll() is None:
                return self._control
            log.warning("the fork server ended with status %s: starting it again", self._process.returncode)
            self._control.close()
            self._living.clear()
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(True)  # whatever the default of this process is just now: see Pipe
        # Not the user's folder as working directory: Python puts that first on the path, and it may hold anything.
        code_folder = Path(cyxwiz_tasks.__file__).resolve().parent.parent
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cyxwiz_tasks.runtime.forkserver", str(theirs.fileno()), *self._words],
                pass_fds=[theirs.fileno()],
                env=self._environment,
                cwd=code_folder,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control = ours
        return ours

    def _ends(self) -> tuple[socket.socket, socket.socket, int, int, int, int]:
        """Both ends of the job's pipe, its log and its status. Raises ForkFailed where there is no room for them."""
        fds: list[int] = []
        try:
            fds += os.pipe()
            fds += os.pipe()
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._let_go(*fds)
            raise ForkFailed(f"{ForkFailed.__doc__} ({error})") from error
        return ours, theirs, fds[0], fds[1], fds[2], fds[3]

    @staticmethod
    def _let_go(*fds: int) -> None:
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def _cgroup_of(name: str, pid: int) -> AttemptCgroup | None:
    """A cgroup for this process, made ahead of the job: moving a process takes the kernel milliseconds."""
    if not AttemptCgroup.available():
        return None
    try:
        cgroup = AttemptCgroup.create(name)
        cgroup.add(pid)
    except (CgroupUnavailable, OSError) as error:
        log.warning("no cgroup for process %d: %s", pid, error)
        return None
    return cgroup
