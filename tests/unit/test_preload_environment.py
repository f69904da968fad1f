"""What the fork server leaves in the environment of its jobs when it begins again without a module."""

from __future__ import annotations

import os

import pytest

from cyxwiz_tasks.runtime import forkserver


class Executed(Exception):
    """Where the process would have become another."""


def test_to_begin_again_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = dict[str, str]()

    def execute(*_: object) -> None:
        seen.update(os.environ)
        raise Executed

    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setattr(forkserver, "touched_cuda", lambda: True)
    monkeypatch.setattr("sys.argv", ["forkserver", "3", "", "json"])
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "forkserver", "3", "", "json"])
    with pytest.raises(Executed):
        forkserver._import_ahead([], ["json"])
    assert "PATH" in seen
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in seen
