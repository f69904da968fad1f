"""What a job's process does, from its fork to its end. It runs one job and never another."""

from __future__ import annotations

import atexit
import faulthandler
import os
import queue
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pydantic import JsonValue, TypeAdapter, ValidationError

from cyxwiz_tasks.celery_app import app
from cyxwiz_tasks.job_task import JobTask
from cyxwiz_tasks.runtime.context import JobContext
from cyxwiz_tasks.runtime.exception_cause import cause_of, memory_of, tells_of_a_kill
from cyxwiz_tasks.runtime.gang_environment import gang_environment
from cyxwiz_tasks.runtime.gpu_share import keep_to_share
from cyxwiz_tasks.runtime.output import flush, flush_c, take_output
from cyxwiz_tasks.runtime.pipe import STACK_DUMP_SIGNAL, Frame, Pipe, decode_value, encode_value
from cyxwiz_tasks.runtime.prctl import become_subreaper, die_with_parent
from cyxwiz_tasks.runtime.rehearsal import rehearse
from cyxwiz_tasks.runtime.user_module import find_task
from cyxwiz_tasks.states import Cause

_VALUE: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)

#: Of an exception's text, arguments and traceback, each. A UnicodeDecodeError holds all that it could not decode, which
#: may be a whole file, and Celery would keep that in Redis.
_LONGEST_CHARACTERS = 15_000

#: Finalising an application took 13 ms of a job's start: here it happens once, before the first fork.
app.finalize()


def main(pipe_fd: int, log_fd: int, parent_pid: int) -> NoReturn:
    """Wait for one job on `pipe_fd`, run it, say how it ended, and exit. Its output goes to `log_fd`."""
    os.setsid()
    become_subreaper()
    die_with_parent(parent_pid)
    take_output(log_fd)
    sys.argv[1:] = []  # those of the fork server, which no parser of the job's would know
    # For a job that hangs: the signal handler needs neither the interpreter's lock nor a turn of its loop.
    faulthandler.register(STACK_DUMP_SIGNAL, file=2, all_threads=True)
    _reseed()
    pipe = Pipe(pipe_fd)
    contexts: queue.SimpleQueue[tuple[JobContext, float | None]] = queue.SimpleQueue()
    # Started ahead of the job: whoever starts a thread waits until it runs.
    threading.Thread(target=_listen, args=(pipe, contexts), name="cyxwiz-listen", daemon=True).start()
    rehearse(_context, _load)
    try:
        pipe.send({"kind": "ready"})
        job = pipe.receive()
    except (EOFError, OSError):
        os._exit(0)  # the agent is gone, or has no use for this process
    pid = os.getpid()
    said = _run(pipe, job, contexts)
    if os.getpid() == pid:
        pipe.send(said)
    _end_as_python_does()
    os._exit(0 if os.getpid() == pid else _end_of_fork(said))


def _end_as_python_does() -> None:
    """Let threads of the job's end their work (a checkpoint that is written in the background), then exit handlers.

    Whatever is registered there (a tracker that uploads its last rows) may still write to the log.
    """
    with suppress(BaseException):  # whatever the job's handler of a signal raises meanwhile
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    flush()
    flush_c()


def _end_of_fork(said: Frame) -> int:
    """The exit code of a fork of the job's that ran on to the end of the function. It does not speak for the job."""
    if said["kind"] == "raised":
        os.write(2, said["traceback"].encode("utf-8", "replace"))
        return 1
    return said["code"] & 0xFF if said["kind"] == "exited" else 0


def _run(pipe: Pipe, job: Frame, contexts: queue.SimpleQueue[tuple[JobContext, float | None]]) -> Frame:
    """Run the job and return its last frame."""
    try:
        try:
            context = _context(pipe, job)
        except OSError as error:
            # The node's own folders: its disk is full, read-only or broken, and another node may do better.
            return _raised(error) | {"cause": Cause.HARDWARE}
        contexts.put((context, job["lease_until"]))
        task, args, kwargs = _load(job)
        returned = task.run_job(context, tuple(args), kwargs)
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(f"{error.code}\n")
        return {"kind": "exited", "code": error.code if isinstance(error.code, int) else int(error.code is not None)}
    except BaseException as error:
        return _raised(error, has_gpu=has_gpu(job))
    finally:
        flush()
    return _returned(returned, job["result_limit_bytes"])


def has_gpu(job: Frame) -> bool:
    """Whether the job was given one. A job that has chosen another by itself may have chosen one that is not there."""
    return bool(job["gpus"]) and os.environ.get("CUDA_VISIBLE_DEVICES") == ",".join(job["gpus"])


def _returned(returned: Any, limit_bytes: int) -> Frame:
    try:
        value = encode_value(returned)
        # Here, where it is the job's error; the report that carries it would not take it either.
        _VALUE.validate_json(value)
    except ValidationError as error:
        reason = error.errors(include_input=False, include_url=False)[0]["msg"]
        return {"kind": "not_json", "type": type(returned).__qualname__, "reason": f"nested too deeply: {reason}"}
    except (TypeError, ValueError, RecursionError) as error:
        return {"kind": "not_json", "type": type(returned).__qualname__, "reason": str(error)}
    if len(value) > limit_bytes:
        return {"kind": "too_large", "bytes": len(value)}
    return {"kind": "returned", "value": value}


def _load(job: Frame) -> tuple[JobTask, list[Any], dict[str, Any]]:
    """The job's task, as Celery would call it, and its arguments."""
    task = find_task(job["task"], job["entry"], job["paths"], job["node"])
    # What Celery sends: arguments, and in `embed` the callbacks, the chain and the chord that the task belongs to.
    args, kwargs, embed = decode_value(job["body"])
    task.push_request(**job["request"], **(embed or {}), args=args, kwargs=kwargs)
    return task, args, kwargs


def _context(pipe: Pipe, job: Frame) -> JobContext:
    # Before anything initialises CUDA: it reads these once.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(job["gpus"])
    if job["gpu_share_bytes"] is not None:
        keep_to_share(job["gpu_share_bytes"])
    if (gang := job["gang"]) is not None:
        os.environ.update(gang_environment(gang))
    os.makedirs(job["folder"], exist_ok=True)
    os.chdir(job["folder"])
    return JobContext(
        pipe,
        job_id=job["job"],
        attempt=job["attempt"],
        device=job["device"],
        threads=job["threads"],
        artifacts=Path(job["artifacts"]),
        checkpoints=Path(job["checkpoints"]),
        token=job["token"],
        cache=Path(job["cache"]),
        data_roots=tuple(map(Path, job["data_roots"])),
        rank=gang["rank"] if gang is not None else 0,
        nodes=tuple(gang["nodes"]) if gang is not None else (job["node"],),
    )


def _listen(pipe: Pipe, contexts: queue.SimpleQueue[tuple[JobContext, float | None]]) -> None:
    context, lease_until = contexts.get()
    try:
        while True:
            if lease_until is not None and not pipe.wait(lease_until - time.monotonic()):
                # An exclusive job whose agent hangs or is cut off. By now it could have been placed again.
                pipe.send_if_room({"kind": "cut_off"})
                _end_session()
            frame = pipe.receive()
            if frame["kind"] == "stop":
                context.ask_to_stop()
                pipe.send({"kind": "heeds", "stop": context.heeds_stop})
            elif frame["kind"] == "lease":
                lease_until = frame["until"]
    except (EOFError, OSError):
        _end_session()  # the agent is gone and nobody will hear the result


def _end_session() -> NoReturn:
    os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _raised(error: BaseException, *, has_gpu: bool = False) -> Frame:
    try:
        # Celery's: for self.retry(), which only tells here, because a job has no broker to publish to.
        from celery.exceptions import Retry

        if isinstance(error, Retry):
            cause = None if error.exc is None else _exception(error.exc)
            return {"kind": "retry", "message": encode_value(dict(error.sig)), "cause": cause}
        text = _cut("".join(traceback.format_exception(_without_our_frames(error))))
        judged = {"cause": cause_of(error, has_gpu=has_gpu), "memory": memory_of(error), "kill": tells_of_a_kill(error)}
        return {"kind": "raised", "traceback": text} | judged | _exception(error)
    except Exception:
        # An exception that cannot even be shown still ends the job as what it is.
        kind = type(error)
        return {"kind": "raised", "traceback": "", "cause": "error", "memory": None, "kill": False} | {
            "type": kind.__qualname__,
            "module": kind.__module__,
            "bases": [],
            "args": encode_value([]),
            "text": kind.__qualname__,
        }


def _exception(error: BaseException) -> Frame:
    kind, text = type(error), _cut(str(error))
    try:
        args = encode_value(list(error.args))
    except (TypeError, ValueError, RecursionError):
        args = ""
    if not 0 < len(args) <= _LONGEST_CHARACTERS:
        args = encode_value([text])
    bases = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__ if base is not object]
    return {"type": kind.__qualname__, "module": kind.__module__, "bases": bases, "args": args, "text": text}


def _cut(text: str) -> str:
    rest = len(text) - _LONGEST_CHARACTERS
    if rest <= 0:
        return text
    half = _LONGEST_CHARACTERS // 2
    return f"{text[:half]}\n[... {rest} characters are cut here ...]\n{text[-half:]}"


def _without_our_frames(error: BaseException) -> BaseException:
    """Cut the frames of this package off the front: the user's own come first."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("cyxwiz_tasks."):
        frames = frames.tb_next
    return error.with_traceback(frames) if frames is not None else error


def _reseed() -> None:
    """Every fork would draw the same numbers from numpy; `random` does it by itself, torch starts from a constant."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
