"""GPU scheduling for Celery: say what hardware a task needs and call `.delay()`.

Names are imported when they are first used, so that `import cyxwiz_tasks` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cyxwiz_tasks.version import __version__

if TYPE_CHECKING:
    from cyxwiz_tasks import errors
    from cyxwiz_tasks.array_handle import ArrayHandle
    from cyxwiz_tasks.celery_app import app, install, make_app
    from cyxwiz_tasks.client import Client
    from cyxwiz_tasks.early_stopping import SuccessiveHalving
    from cyxwiz_tasks.handle import JobHandle
    from cyxwiz_tasks.job_task import JobTask, job
    from cyxwiz_tasks.resources import Resources
    from cyxwiz_tasks.states import Priority
    from cyxwiz_tasks.training_job import TrainingJob
    from cyxwiz_tasks.training_result import TrainingResult

# The decorator's module is `job_task`: a module `job` would take the decorator's place in this package once imported.
_HOMES = {
    "ArrayHandle": "array_handle",
    "Client": "client",
    "JobHandle": "handle",
    "JobTask": "job_task",
    "Priority": "states",
    "Resources": "resources",
    "SuccessiveHalving": "early_stopping",
    "TrainingJob": "training_job",
    "TrainingResult": "training_result",
    "app": "celery_app",
    "install": "celery_app",
    "job": "job_task",
    "make_app": "celery_app",
}

__all__ = [
    "ArrayHandle",
    "Client",
    "JobHandle",
    "JobTask",
    "Priority",
    "Resources",
    "SuccessiveHalving",
    "TrainingJob",
    "TrainingResult",
    "__version__",
    "app",
    "errors",
    "install",
    "job",
    "make_app",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("cyxwiz_tasks.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
