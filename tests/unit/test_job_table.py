"""Lists of jobs, and of nodes, on terminals of any width."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from cyxwiz_tasks.cli.job_table import show_jobs
from cyxwiz_tasks.cli.node_table import show_nodes

ID = "0190f2c4-1111-8222-8333-74c5f36ef3e5"


def row(**values: Any) -> dict[str, Any]:
    given = {"id": ID, "state": "running", "name": "cnn learning_rate=0.1 seed=3", "node": "gpu-1", "attempts": 1}
    return given | {"priority": "normal", "submitted_at": "2026-11-25T10:00:00+00:00"} | values


def shown(rows: list[dict[str, Any]], width: int, *, terminal: bool = True) -> str:
    file = StringIO()
    show_jobs(rows, Console(file=file, force_terminal=terminal, color_system=None, width=width))
    return file.getvalue()


def test_at_80_columns_the_parameters_of_an_arrays_job_are_shown() -> None:
    text = shown([row()], 80)
    assert "learning_rate=0.1 seed=3" in " ".join(text.split())
    assert "74c5f36ef3e5 " in text
    assert ID not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("width", "terminal"), [(120, True), (80, False)])
def test_a_wide_terminal_and_a_program_get_whole_ids(width: int, terminal: bool) -> None:
    assert ID in shown([row()], width, terminal=terminal)


def test_what_is_out_of_the_ordinary_is_shown_at_any_width() -> None:
    assert "PRIORITY" not in shown([row()], 80)
    assert "critical" in shown([row(), row(priority="critical")], 80)
    assert "TRIES" in shown([row(), row(attempts=3)], 80)


def nodes_shown(*capabilities: dict[str, Any], width: int, terminal: bool = True) -> str:
    file = StringIO()
    gpu = {"model": "NVIDIA A100", "memory_bytes": 80 << 30}
    usual = {"gpus": [gpu, gpu], "cpu_cores": 64, "ram_bytes": 512 << 30, "torch": "2.13.0+cpu"}
    node = {"state": "up", "assigned": 1, "running": 2, "slots": 4}
    rows = [node | {"name": f"gpu-{at}", "capability": usual | can} for at, can in enumerate(capabilities)]
    show_nodes(rows, Console(file=file, force_terminal=terminal, color_system=None, width=width))
    return file.getvalue()


def in_one_line(text: str, column: str, following: str = "") -> str:
    """A column's words, whatever the lines they are on."""
    header, *lines = text.splitlines()
    start, end = header.index(column), header.index(following) if following else None
    return " ".join(" ".join(line[start:end] for line in lines).split())


@pytest.mark.parametrize(("opens_in_days", "state"), [(0, "up"), (2, "up, opens")])
def test_nodes_at_80_columns_lose_no_letter(opens_in_days: int, state: str) -> None:
    if opens_in_days:
        hours = f"{datetime.now(UTC) + timedelta(days=opens_in_days):%a} 12:00-13:00"
    else:
        hours = "Mon-Sun 00:00-24:00"
    text = nodes_shown({"hours": hours}, {"accept": 'owner == "ann"'}, width=80)
    assert in_one_line(text, "STATE", "GPUS").startswith(state)
    assert in_one_line(text, "GPUS", "CPUS") == "2x NVIDIA A100 80GB 2x NVIDIA A100 80GB"
    assert in_one_line(text, "TAKES") == 'all owner == "ann"'
    assert "…" not in text
    assert "TORCH" not in text
    assert "LABELS" not in text


def test_nodes_with_unlike_torch_show_it_at_any_width() -> None:
    assert "TORCH" in nodes_shown({}, {"torch": "2.11.0"}, width=80)


def test_a_program_gets_each_node_in_one_line() -> None:
    text = nodes_shown({"labels": {"rack": "b2"}}, {"accept": 'owner == "ann"'}, width=80, terminal=False)
    [_, first, second] = text.splitlines()
    assert "rack=b2" in first
    assert "2.13.0+cpu" in first
    assert 'owner == "ann"' in second
