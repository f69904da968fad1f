"""`cyxwiz --help`: quick, grouped, and true."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from cyxwiz_tasks.cli.durations import show_seconds
from cyxwiz_tasks.cli.main import _OWN, _SECTIONS, main

CYXWIZ = str(Path(sys.executable).with_name("cyxwiz"))


def test_help_names_every_command_in_its_group() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    for section, commands in _SECTIONS.items():
        assert f"{section}:" in shown
        assert all(f"  {name} " in shown for name in commands)
    assert "Others:" not in shown


def test_the_texts_in_the_overview_are_those_of_the_commands() -> None:
    texts = {name: text for commands in _SECTIONS.values() for name, text in commands.items()}
    for name in _OWN:
        command = main.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.short_help == texts[name]
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    helps, yardsticks = [], []
    for _ in range(3):
        helps.append(_seconds(CYXWIZ, "--help"))
        yardsticks.append(_seconds(sys.executable, "-c", "import click"))
    assert min(helps) < 6 * min(yardsticks)
    program = (
        "import sys; from click.testing import CliRunner; from cyxwiz_tasks.cli.main import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "found = {'torch', 'sqlalchemy', 'celery', 'rich', 'redis'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_command_is_a_usage_error() -> None:
    done = CliRunner().invoke(main, ["sumbit"])
    assert done.exit_code == 2
    assert "No such command 'sumbit'" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.42, "0.4 s"),
        (59.6, "1 min"),
        (75, "1 min 15 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (360000, "4 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def _seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began
