"""Where the job's process finds a function: `module:qualname`, and the folder to import it from."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from cyxwiz_tasks.errors import InvalidJob


class Entry(NamedTuple):
    #: as `import` wants it; the module's own file name where the function stands in `__main__`
    module: str
    qualname: str
    #: folder that holds the module; None where it is installed and every node must have it installed too
    path: str | None

    @property
    def text(self) -> str:
        return f"{self.module}:{self.qualname}"


def entry_of(function: Callable[..., Any]) -> Entry:
    """The entry of a function.

    Raises InvalidJob where no other process could import it: lambdas, functions inside functions, interactive ones.
    """
    qualname = getattr(function, "__qualname__", type(function).__qualname__)
    if "<" in qualname:
        what = "a lambda" if qualname.endswith("<lambda>") else "a function inside a function"
        raise InvalidJob(
            qualname,
            f"{what} cannot be imported by the job's process",
            "Write it as a function of a module (`def` at top level)",
        )
    module = sys.modules.get(function.__module__)
    spec = getattr(module, "__spec__", None)
    file = getattr(module, "__file__", None)
    # The spec of `python -m package.train` has the real name; `python train.py` has no spec.
    name = spec.name if spec is not None else function.__module__
    if function.__module__ == name != "__main__":
        return Entry(name, qualname, _root(file, name))
    if file is None:
        raise InvalidJob(
            qualname,
            "a function of an interactive session cannot be imported by the job's process",
            "Write it into a file",
        )
    name = Path(file).stem if name == "__main__" else name
    # Jobs return exceptions by module and name; the script's own classes must be found under its name as a module.
    sys.modules.setdefault(name, sys.modules[function.__module__])
    return Entry(name, qualname, _root(file, name))


@lru_cache(maxsize=256)
def _root(file: str | None, module: str) -> str | None:
    if file is None:
        return None
    # A job's process comes here before it runs anything: pathlib takes three times as long.
    root = path = os.path.realpath(file)
    for _ in range(1 + module.count(".") + (os.path.basename(path) == "__init__.py")):
        root = os.path.dirname(root)
    return None if root in _installed_folders() else root


@lru_cache(maxsize=1)
def _installed_folders() -> frozenset[str]:
    # Once: these took a third of the time in which a job's process imports the job's module.
    return frozenset(os.path.realpath(sysconfig.get_path(kind)) for kind in ("purelib", "platlib", "stdlib"))
