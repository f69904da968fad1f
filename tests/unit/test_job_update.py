"""What a job reports, in one line and in a bar: a job of somebody's own reports any JSON under any name."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from cyxwiz_tasks.cli.follow import _Bar
from cyxwiz_tasks.job_update import JobUpdate
from cyxwiz_tasks.protocol.updates import Update


def reported(**values: Any) -> JobUpdate:
    return JobUpdate(Update(kind="progress", state="PROGRESS", values=values))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"step": 2, "total": 10, "loss": 0.123456, "samples_per_second": 1234.5, "eta_seconds": 3}, "1,234 samples/s"),
        # A report's infinity is the text "inf".
        ({"step": 2, "loss": 0.5, "samples_per_second": 0, "eta_seconds": "inf"}, "inf s left"),
        ({"step": 2, "loss": "nan", "samples_per_second": "inf"}, "inf samples/s"),
        ({"step": "load [/the] data", "total": 3, "loss": 1}, "step load [/the] data"),
        ({"step": 1, "total": "unknown", "epochs": 3, "loss": 1}, "step 1/unknown"),
        ({"epoch": "nan", "epochs": 3, "loss": 1}, "epoch nan/3"),
    ],
)
def test_any_report_is_a_line_and_moves_the_bar(values: dict[str, Any], line: str) -> None:
    update, file = reported(**values), StringIO()
    assert line in str(update)
    bar = _Bar(Console(file=file, force_terminal=True, width=160, no_color=True))
    with bar:
        bar.progress(update)
    assert f"loss {values['loss']}"[:9] in file.getvalue()
