"""Processes that are killed, frozen, or told to end."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Any

import psutil

from tests.chaos.faults.fault import BLINK, LONG, PATIENCE_SECONDS, SHORT, Fault
from tests.chaos.schedule import Kind
from tests.chaos.stack import Member

#: a witness line older than this says nothing of what runs now
_FRESH_SECONDS = 1.0


class _Signal(Fault):
    """Sends one signal to `target()`; the proof is what became of the process."""

    number = signal.SIGKILL

    def target(self) -> Member | None:
        return self.node if self.node_at_work() else None

    def inject(self) -> None:
        member = self.target()
        if member is None or not member.alive():
            return
        process = psutil.Process(member.pid)
        os.kill(process.pid, self.number)
        with suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
            # Popen's own wait belongs to the supervisor; a zombie is dead as well.
            if self.until(lambda: _is_gone(process), 5.0 if self.number == signal.SIGKILL else 30.0):
                self.proof = {"service": member.name, "pid": process.pid, "gone": True}


class KillWorker(_Signal):
    kind = Kind("kill_worker", "node", BLINK)


class TerminateWorker(_Signal):
    """As a drain: its jobs give their places back."""

    kind = Kind("terminate_worker", "node", (0.0, 1.0))
    number = signal.SIGTERM


class KillLeader(_Signal):
    kind = Kind("kill_leader", "scheduler", BLINK)

    def target(self) -> Member | None:
        self.until(lambda: self.stack.leader() is not None, PATIENCE_SECONDS)
        return self.stack.leader()


class TerminateLeader(KillLeader):
    kind = Kind("terminate_leader", "scheduler", BLINK)
    number = signal.SIGTERM


class KillStandby(_Signal):
    kind = Kind("kill_standby", "scheduler", BLINK)

    def target(self) -> Member | None:
        self.until(lambda: self.stack.leader() is not None and self.all_run(), PATIENCE_SECONDS)
        leader = self.stack.leader()
        return next((one for one in self.stack.schedulers if one is not leader and one.alive()), None)

    def all_run(self) -> bool:
        return all(one.alive() for one in self.stack.schedulers)


class _Freeze(Fault):
    """SIGSTOP, and SIGCONT when it heals."""

    frozen: psutil.Process | None = None

    def target(self) -> psutil.Process | None:
        return psutil.Process(self.node.pid) if self.node_at_work() else None

    def inject(self) -> None:
        process = self.target()
        if process is None:
            return
        process.suspend()
        self.frozen = process
        if self.until(lambda: process.status() == psutil.STATUS_STOPPED, 2.0):
            self.proof = {"pid": process.pid, "stopped": True}

    def heal(self) -> None:
        if self.frozen is not None:
            with suppress(psutil.NoSuchProcess):
                self.frozen.resume()


class FreezeWorkerBriefly(_Freeze):
    kind = Kind("freeze_worker_briefly", "node", SHORT)


class FreezeWorker(_Freeze):
    """Past the lease: its attempts are placed again, and it comes back as a zombie."""

    kind = Kind("freeze_worker", "node", LONG)

    def inject(self) -> None:
        super().inject()
        if self.proof:
            self.proof |= {"node": self.node.name, "frozen_at": time.time()}


class FreezeLeaderBriefly(_Freeze):
    kind = Kind("freeze_leader_briefly", "scheduler", SHORT)

    def target(self) -> psutil.Process | None:
        self.until(lambda: self.stack.leader() is not None, PATIENCE_SECONDS)
        leader = self.stack.leader()
        return None if leader is None else psutil.Process(leader.pid)


class FreezeLeader(FreezeLeaderBriefly):
    """Past the silence after which its lock is taken from it."""

    kind = Kind("freeze_leader", "scheduler", (12.0, 14.0))


class _OfJob(Fault):
    """Strikes the process of a job that has just written a step."""

    def running(self) -> tuple[dict[str, Any], psutil.Process] | None:
        found: list[tuple[dict[str, Any], psutil.Process]] = []

        def look() -> bool:
            steps = [step for step in self.scene.newest_steps() if isinstance(step["step"], int)]
            seen: set[int] = set()
            for step in steps:
                if step["pid"] not in seen and step["monotonic"] > steps[0]["monotonic"] - _FRESH_SECONDS:
                    seen.add(step["pid"])
                    with suppress(psutil.NoSuchProcess):
                        process = psutil.Process(step["pid"])
                        if process.status() != psutil.STATUS_ZOMBIE:
                            found.append((step, process))
            return bool(found)

        return found[self.planned.choice % len(found)] if self.until(look, PATIENCE_SECONDS) else None


class KillJob(_OfJob):
    kind = Kind("kill_job", "job", BLINK)

    def inject(self) -> None:
        target = self.running()
        if target is None:
            return
        step, process = target
        process.kill()
        if self.until(lambda: _is_gone(process), 5.0):
            self.proof = {"job": step["job"], "attempt": step["attempt"], "step": step["step"], "pid": process.pid}


class FreezeJob(_OfJob):
    kind = Kind("freeze_job", "job", SHORT)
    frozen: psutil.Process | None = None

    def inject(self) -> None:
        target = self.running()
        if target is not None:
            step, self.frozen = target
            self.frozen.suspend()
            self.proof = {"job": step["job"], "pid": self.frozen.pid}

    def heal(self) -> None:
        if self.frozen is not None:
            with suppress(psutil.NoSuchProcess):
                self.frozen.resume()


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


KINDS: tuple[type[Fault], ...] = (
    KillWorker,
    TerminateWorker,
    KillLeader,
    TerminateLeader,
    KillStandby,
    FreezeWorkerBriefly,
    FreezeWorker,
    FreezeLeaderBriefly,
    FreezeLeader,
    KillJob,
    FreezeJob,
)
