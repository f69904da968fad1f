"""Jobs that the tests of a node run, imported by the jobs' processes and by the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cyxwiz_tasks import job


class OutOfLuck(Exception):
    """A user's own exception, with arguments of its own."""

    def __init__(self, what: str, amount: int) -> None:
        super().__init__(what, amount)


@job
def add(a: int, b: int) -> int:
    return a + b


@job
def total(numbers: list[int]) -> int:
    return sum(numbers)


@job
def where_am_i(ctx: Any) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "job": ctx.job_id,
        "attempt": ctx.attempt,
        "device": ctx.device,
        "threads": ctx.threads,
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "artifacts": str(ctx.artifacts),
        "environment": sorted(os.environ),
        "environ_file": Path("/proc/self/environ").read_text(),
        "torch": "torch" in sys.modules,
        "path": sys.path[0],
    }


@job
def raises() -> None:
    raise OutOfLuck("no luck left", 7)


@job
def raises_odd_text() -> None:
    raise ValueError("a NUL \0 and half a pair \udc80")


@job
def is_killed_after(text: str) -> None:
    print(text)
    os.kill(os.getpid(), signal.SIGKILL)


@job
def exits(code: int) -> None:
    sys.exit(code)


@job
def runs_out_of_memory() -> None:
    raise MemoryError("asked for 4 TB")


@job
def returns_an_object() -> object:
    return object()


@job
def returns_much(size: int) -> str:
    return "x" * size


@job(time_limit=0.3)
def overstays() -> None:
    time.sleep(600)


@job
def reports(ctx: Any, count: int) -> int:
    for step in range(1, count + 1):
        ctx.report(step=step, steps=count, loss=float("nan") if step == 2 else 1.0 / step)
    return count


@job
def prints(text: str) -> None:
    os.mkdir("log")
    print(text)
    print("to stderr", file=sys.stderr)
    os.write(1, b"by the descriptor\n")
    subprocess.run(["echo", "from a child"], check=True)


@job
def waits(ctx: Any, folder: str, cooperative: bool = True) -> str:
    """Writes its pid, then waits for the file `go`."""
    Path(folder, "pid").write_text(f"{os.getpid()}\n")
    while not Path(folder, "go").exists():
        if cooperative and ctx.should_stop:
            Path(folder, "stopped").touch()
            return "stopped"
        time.sleep(0.01)
    return "went"


@job
def is_stubborn(folder: str) -> None:
    """Ignores SIGTERM and leaves a daemon in a session of its own, whose parent is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    daemon = "import os,sys,time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0);"
    daemon += "print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(600)"
    subprocess.run([sys.executable, "-c", daemon, str(Path(folder, "daemon"))], check=True)
    while not Path(folder, "daemon").exists() or not Path(folder, "daemon").read_text():
        time.sleep(0.01)
    Path(folder, "pid").write_text(f"{os.getpid()}\n")
    while True:
        time.sleep(1)


@job
def leaves_a_daemon(folder: str) -> str:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(folder, "daemon").write_text(f"{child.pid}\n")
    return "done"


@job
def now(_: float = 0.0) -> float:
    return time.monotonic()


@job(bind=True, max_retries=2)
def tries_again(self: Any) -> int:
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=OutOfLuck("first try", 1))
    return int(self.request.retries)


def not_a_job() -> str:
    return "must never run"


@job
def counts_until(ctx: Any, path: str) -> int:
    """Reports 0, 1, 2, ... until the file PATH is there; returns how many it reported."""
    Path(path + ".started").touch()
    count = 0
    while not Path(path).exists() or count < 200:
        ctx.report(step=count)
        count += 1
        time.sleep(0.005)
    return count


@job
def ticks(ctx: Any, path: str) -> int:
    """Writes its pid and then, every 20 ms, the time into the file PATH, until it is asked to stop."""
    count = 0
    with open(path, "w", buffering=1) as file:
        print(os.getpid(), file=file)
        while not ctx.should_stop:
            print(time.monotonic(), file=file)
            count += 1
            time.sleep(0.02)
    return count


@job(exclusive=True)
def ticks_alone(ctx: Any, path: str) -> int:
    return ticks.run(ctx, path)


@job
def hangs(ctx: Any, folder: str) -> None:
    """Reports six times, and then never again."""
    for step in range(6):
        ctx.report(step=step)
        time.sleep(0.02)
    Path(folder, "pid").write_text(f"{os.getpid()}\n")
    sleeps_for_ever()


def sleeps_for_ever() -> None:
    while True:
        time.sleep(600)


@job
def saves_slowly(ctx: Any, folder: str, seconds: float) -> str:
    """Takes so long to write down what it has, once it is asked to stop."""
    Path(folder, "pid").write_text(f"{os.getpid()}\n")
    while not ctx.should_stop:
        time.sleep(0.01)
    time.sleep(seconds)
    Path(folder, "saved").touch()
    return "saved"


@job
def returns_a_deep_list(depth: int) -> list:
    made: list = []
    for _ in range(depth):
        made = [made]
    return made


@job
def loses_its_peer() -> None:
    raise ConnectionResetError(104, "Connection reset by peer")
