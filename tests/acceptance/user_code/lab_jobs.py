"""A user's own module: jobs of every temper, as the nodes of the acceptance tests import it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cyxwiz_tasks import Resources, job


@job
def add(a: int, b: int) -> int:
    return a + b


@job
def total(numbers: list[int]) -> int:
    return sum(numbers)


@job
def whoami() -> dict[str, Any]:
    return {"pid": os.getpid(), "environment": dict(os.environ)}


@job(resources=Resources(gpu_memory="20GB.."))
def needs_a_big_gpu(ctx: Any) -> dict[str, Any]:
    return {"device": ctx.device, "attempt": ctx.attempt}


@job(resources=Resources(gpus=1))
def needs_a_gpu(ctx: Any, number: int) -> int:
    return number * 2


@job
def talks(ctx: Any, lines: int) -> int:
    for line in range(lines):
        print(f"line {line}", flush=True)
        ctx.report(step=line + 1, total=lines, loss=1.0 / (line + 1))
    print("to stderr", file=sys.stderr)
    subprocess.run(["echo", "from a child"], check=True)
    return lines


@job
def fails(message: str = "no such luck") -> None:
    raise ValueError(message)


@job
def crashes() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@job
def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@job
def exits(code: int = 3) -> None:
    os._exit(code)


@job
def runs_out_of_memory() -> None:
    raise MemoryError("asked for more than there is")


@job
def returns_no_json() -> Any:
    return object()


@job
def waits_for(path: str, seconds: float = 60.0) -> str:
    """Writes PATH.started and returns once PATH exists: how a test holds a job where it wants it."""
    Path(path + ".started").write_text(str(os.getpid()))
    end = time.monotonic() + seconds
    while not Path(path).exists():
        if time.monotonic() > end:
            raise TimeoutError(path)
        time.sleep(0.01)
    return Path(path).name


@job
def ignores_everything(path: str) -> None:
    """Ignores SIGTERM and leaves a grandchild in a session of its own; their pids go to PATH."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(path).write_text(f"{os.getpid()} {child.pid}")
    while True:
        time.sleep(1)


@job(time_limit=1.0)
def overstays() -> None:
    time.sleep(600)


@job
def stops_when_asked(ctx: Any, path: str) -> str:
    Path(path).write_text(str(os.getpid()))
    while not ctx.should_stop:
        time.sleep(0.01)
    return "stopped in order"


@job
def saves_once_and_stops_when_asked(ctx: Any, path: str) -> int | None:
    """Writes PATH.started, saves a checkpoint once PATH exists; an attempt that finds one returns its step."""
    if (saved := ctx.restore()) is not None:
        return int(saved["step"])
    Path(path + ".started").write_text(str(os.getpid()))
    is_saved = False
    while not ctx.should_stop:
        is_saved = is_saved or (Path(path).exists() and ctx.checkpoint(step=7))
        time.sleep(0.01)
    return None


@job
def reports_until_stopped(ctx: Any, path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    step = 0
    while not ctx.should_stop:
        step += 1
        ctx.report(step=step, loss=1.0 / step)
        time.sleep(0.05)


@job(max_retries=3)
def crashes_once(ctx: Any) -> int:
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return int(ctx.attempt)


@job(max_retries=3, retry_on=LookupError)
def raises_once(ctx: Any, name: str) -> int:
    if ctx.attempt == 1:
        raise {"key": KeyError, "type": TypeError}[name]("not this time")
    return int(ctx.attempt)


@job(bind=True, max_retries=3)
def tries_again(self: Any, counted: int) -> list[int]:
    if self.request.retries < 2:
        raise self.retry(args=(counted + 1,), countdown=0.3, exc=ConnectionError("not yet"))
    return [counted, int(self.request.retries)]
