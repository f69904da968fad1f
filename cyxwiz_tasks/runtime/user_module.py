"""Find the function that a message names, in the job's own process and nowhere else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from operator import attrgetter

from cyxwiz_tasks.errors import CyxwizError
from cyxwiz_tasks.job_task import JobTask


class TaskNotFound(CyxwizError):
    """The job's function is not on this node."""


def find_task(name: str, entry: str | None, paths: Sequence[str], node: str) -> JobTask:
    """The task `name`, imported from `entry` (`module:qualname`) with `paths` first on sys.path.

    Only what was made a job is ever returned: a message cannot name any other function. Raises TaskNotFound, and
    whatever the module itself raises while it is imported.
    """
    if entry is None:
        from cyxwiz_tasks.builtin import TASKS

        if name not in TASKS:
            raise TaskNotFound(
                f'there is no task "{name}" on node {node}: its message names no module to import it from'
            )
        return TASKS[name]
    module_name, _, qualname = entry.partition(":")
    sys.path[:0] = [path for path in paths if path not in sys.path]
    where = f"node {node}, which searched {', '.join(paths) or 'its installed packages alone'}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise  # the user's module is there, and imports one that is not
        raise TaskNotFound(
            f'module "{module_name}" of task {name} is not on {where}: install it there, or start that node with '
            f"`cyxwiz worker --path FOLDER`"
        ) from error
    try:
        found = attrgetter(qualname)(module)
    except AttributeError:
        raise TaskNotFound(
            f'"{qualname}" is not in {module_name} ({module.__file__}) on {where}: bring that copy up to date'
        ) from None
    if not isinstance(found, JobTask):
        raise TaskNotFound(f"{entry} is no job on {where}: put @job before it")
    if found.name != name:
        raise TaskNotFound(f"{entry} is the task {found.name} on {where}, not {name}: bring that copy up to date")
    return found
