"""Walk a job's way once, in the process that waits for one.

After a fork all memory is shared with the fork server, and whoever touches a page first pays for its copy. On the way
from the job's frame to the first line of its function those faults were two thirds of the time (3 ms of 4.5): importing
a module and making a task of its function touches much of the interpreter. Rehearsed, the pages are the process's own
before there is a job that waits for them.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

from cyxwiz_tasks.job_task import JobTask
from cyxwiz_tasks.runtime.context import JobContext
from cyxwiz_tasks.runtime.pipe import Frame, Pipe, encode_value

_MODULE = "cyxwiz_tasks.runtime.rehearsed"
_TASK = f"{_MODULE}.nothing"


def rehearse(
    context_of: Callable[[Pipe, Frame], JobContext],
    load: Callable[[Frame], tuple[JobTask, list[object], dict[str, object]]],
) -> None:
    """Run a job that does nothing through both, and leave no trace of it but warm memory."""
    ours, theirs = socket.socketpair()
    sender, receiver = Pipe(ours.detach()), Pipe(theirs.detach())
    sender.send(_frame(os.getcwd()))
    job = receiver.receive()
    context = context_of(receiver, job)
    task, args, kwargs = load(job)
    encode_value(task.run_job(context, tuple(args), kwargs))
    task.pop_request()
    task.app.tasks.unregister(_TASK)
    del sys.modules[_MODULE]
    for pipe in (sender, receiver):
        pipe.close()


def _frame(folder: str) -> Frame:
    folders = dict.fromkeys(("folder", "artifacts", "checkpoints", "cache"), folder)
    return folders | {
        "kind": "run",
        "task": _TASK,
        "entry": f"{_MODULE}:nothing",
        "paths": [],
        "node": "",
        "job": "",
        "attempt": 1,
        "token": 0,
        "gang": None,
        "device": "cpu",
        "gpus": [],
        "gpu_share_bytes": None,
        "threads": 1,
        "data_roots": [folder],
        "result_limit_bytes": 0,
        "lease_until": None,
        "request": {"id": "", "task": _TASK, "headers": {}, "delivery_info": {}},
        "body": '[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
    }
