"""The process that all jobs of a node are forked from: torch is imported here once, and CUDA is never touched.

Not multiprocessing's fork server, because of five things that a node needs:
- its environment is given, and holds no credentials, where that one inherits the agent's;
- what it is told is file descriptors alone: nothing is pickled, and no `__main__` is run a second time;
- a job that uses multiprocessing starts a fork server of its own, inside its own process tree, not children of ours;
- it is the reaper of what dead jobs leave behind, so the agent can find and end them (`orphans_of`);
- when the agent ends, however it ends, every job ends with its whole session.

The agent holds one end of a socket pair. A message on it is one byte with three descriptors: the job's pipe, its log,
and where to write two signed 64-bit numbers: the process's pid at once and its exit code (negative: a signal) at its
end. End of file means that the agent is gone.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import selectors
import signal
import socket
import struct
import sys
import time
import weakref
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NoReturn

from cyxwiz_tasks.runtime.output import flush, flush_c
from cyxwiz_tasks.runtime.prctl import become_subreaper

NUMBER = struct.Struct("q")
_PRELOAD = ("torch", "cyxwiz_tasks.runtime.entry", "cyxwiz_tasks.builtin", "cyxwiz_tasks.training.loop")
_END_SECONDS = 5.0
_ASK_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
#: what the driver answers to whatever it is asked before cuInit
_CUDA_ERROR_NOT_INITIALIZED = 3


class ForkServer:
    """The loop: fork on request, tell who has ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._status_of: dict[int, int] = {}
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)

    def serve(self) -> None:
        """Fork and reap until the agent is gone; then end every job."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._wake_read in ready:
                    os.read(self._wake_read, 4096)
                    self._reap()
                if self._control.fileno() in ready and not self._fork(selector):
                    break
        self._end_all()

    def _fork(self, selector: selectors.BaseSelector) -> bool:
        try:
            message, fds, _, _ = socket.recv_fds(self._control, 1, 3)
        except ConnectionResetError:
            return False
        if not message:
            return False
        pipe_fd, log_fd, status_fd = fds
        parent_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            # Too many processes, or no memory: the agent reads end of file instead of a pid, and tries again.
            for fd in fds:
                os.close(fd)
            return True
        if pid == 0:
            selector.close()
            self._become_job(pipe_fd, log_fd, status_fd, parent_pid)
        os.close(pipe_fd)
        os.close(log_fd)
        self._status_of[pid] = status_fd
        self._tell(pid, pid)
        return True

    def _become_job(self, pipe_fd: int, log_fd: int, status_fd: int, parent_pid: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._control.close()
            for fd in (self._wake_read, self._wake_write, status_fd, *self._status_of.values()):
                os.close(fd)
            from cyxwiz_tasks.runtime import entry

            entry.main(pipe_fd, log_fd, parent_pid)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _reap(self) -> bool:
        """Take every process that has ended; False once there is no process left."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                self._tell(pid, os.waitstatus_to_exitcode(status))
                if (status_fd := self._status_of.pop(pid, None)) is not None:
                    os.close(status_fd)
        return False

    def _tell(self, pid: int, number: int) -> None:
        # The agent may have gone, or have closed its end of a process that it gave up.
        with suppress(KeyError, BrokenPipeError):
            os.write(self._status_of[pid], NUMBER.pack(number))

    def _end_all(self) -> None:
        deadline = time.monotonic() + _END_SECONDS
        while self._reap() and time.monotonic() < deadline:
            for pid in {*self._status_of, *_children()}:
                for kill in (os.killpg, os.kill):
                    with suppress(ProcessLookupError, PermissionError):
                        kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def _children() -> set[int]:
    """Everybody whose parent this process is, adopted daemons of dead jobs too."""
    with suppress(OSError):
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    return set()


def _look_through(paths: list[str]) -> None:
    """List these folders, for the import of each job's module. A folder that has changed since is listed again then."""
    # One that is not there yet would be remembered as none for ever.
    PathFinder.find_spec("no_module_has_this_name", [path for path in paths if Path(path).is_dir()])


def _import_ahead(paths: list[str], modules: list[str]) -> None:
    if modules:
        sys.path[:0] = paths
    # With it a module may ask torch.cuda.is_available() while it is imported: torch asks NVML then.
    before = os.environ.get(_ASK_NVML)
    os.environ[_ASK_NVML] = "1"
    try:
        for name in modules:
            _import(name)
            if touched_cuda():
                sys.stderr.write(
                    f"forkserver: --preload {name} uses the GPU while it is imported, so jobs import it themselves: "
                    f"leave that to its functions\n"
                )
                break
        else:
            return
    finally:
        # Before the process begins again, too: its environment goes on, and would reach every job.
        if before is None:
            os.environ.pop(_ASK_NVML, None)
        else:
            os.environ[_ASK_NVML] = before
    _begin_again_without(name)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        sys.stderr.write(f"forkserver: --preload {name} failed, jobs import it themselves: {reason}\n")


def touched_cuda() -> bool:
    """Whether this process has initialised CUDA, by whatever library: no process forked from it could use it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False  # no library that was imported uses it
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _CUDA_ERROR_NOT_INITIALIZED)


def _begin_again_without(module: str) -> NoReturn:
    modules = sys.argv[3:]
    own = sys.orig_argv[: -len(modules)]
    os.execv(sys.executable, [*own, *(name for name in modules if name != module)])  # noqa: S606


def main() -> None:
    """`python -m cyxwiz_tasks.runtime.forkserver FD PATHS [MODULE...]`.

    FD is the socket to the agent, PATHS is where jobs' code lies, and each MODULE there is imported ahead for all jobs.
    """
    # Ctrl-C goes to every process of the terminal; when to end is the agent's word.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    become_subreaper()
    for name in _PRELOAD:
        try:
            __import__(name)
        except ImportError as error:
            sys.stderr.write(f"forkserver: {name} is not here, jobs that need it will fail: {error}\n")
    paths = [path for path in sys.argv[2].split(os.pathsep) if path]
    _look_through(paths)
    _import_ahead(paths, sys.argv[3:])
    # What was printed meanwhile is not a job's.
    flush()
    flush_c()
    # torch leaves hundreds of finalizers for the interpreter's end: 35 ms of every job's, for nothing.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    # Collecting would write to pages that all jobs share.
    gc.collect()
    gc.freeze()
    ForkServer(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
