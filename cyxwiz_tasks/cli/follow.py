"""A job, live: a bar with its numbers while it runs, then what it returned. Also what `cyxwiz demo` shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from cyxwiz_tasks.cli.durations import show_seconds
from cyxwiz_tasks.cli.values import show_mapping, show_value
from cyxwiz_tasks.errors import CyxwizError, JobFailed, SchedulerUnavailable, ServerUnavailable
from cyxwiz_tasks.handle import JobHandle
from cyxwiz_tasks.job_update import JobUpdate
from cyxwiz_tasks.training_result import TrainingResult

#: Where no bar can be drawn, at most one line of progress in so many seconds; the line of an epoch's end always.
_LINE_SECONDS = 1.0
#: Lines of the job's own traceback that are shown.
_TRACEBACK_LINES = 12


def follow(handle: JobHandle, console: Console) -> int:
    """Show a job until it ends, and how it ended. Returns the exit status: 0 if it succeeded, else 1."""
    view = _Bar(console) if console.is_terminal else _Lines(console)
    with view:
        for update in handle.progress():
            if update.kind == "progress":
                view.progress(update)
            elif update.kind == "state":
                view.state(update)
    try:
        value = handle.result()
    except (ServerUnavailable, SchedulerUnavailable):
        raise  # says nothing of the job
    except CyxwizError as error:
        console.print(Text(f"{_word(error)}: {error}", style="bold red"))
        _show_traceback(error, console)
        return 1
    except Exception as error:  # the job's own exception, whatever it is
        console.print(Text(f"job failed: {type(error).__name__}: {error}", style="bold red"))
        _show_traceback(error, console)
        return 1
    _show_value(value, console)
    return 0


class _Bar:
    """For a terminal: one bar that moves, and a line above it for each new state."""

    def __init__(self, console: Console) -> None:
        self.console = console
        numbers = TextColumn("{task.fields[numbers]}", markup=False)
        self.bars = Progress(TextColumn("{task.description}", markup=False), BarColumn(24), numbers, console=console)
        self.task: TaskID | None = None

    def __enter__(self) -> None:
        self.bars.start()

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def state(self, update: JobUpdate) -> None:
        self.bars.console.print(Text(str(update), style="dim"))

    def progress(self, update: JobUpdate) -> None:
        if self.task is None:
            self.task = self.bars.add_task("", total=None, numbers="")
        epochs, total, done = update.get("epochs"), update.get("total"), update.get("step")
        if total is None:
            total, done = epochs, update.get("epoch")
        title = f"step {done}" if done is not None else ""
        if epochs is not None and update.get("epoch") is not None:
            title = f"epoch {update.epoch}/{epochs}"
        # A job of somebody's own may report words in their place: they are shown, and move no bar.
        if not isinstance(total, int | float) or not isinstance(done, int | float):
            total = done = None
        self.bars.update(self.task, description=title, total=total, completed=done or 0, numbers=numbers_of(update))


class _Lines:
    """For a file or a pipe: lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.shown_at, self.epoch = 0.0, None

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def state(self, update: JobUpdate) -> None:
        self.console.print(Text(str(update)), soft_wrap=True)

    def progress(self, update: JobUpdate) -> None:
        ends_epoch = update.get("val_loss") is not None
        if ends_epoch or time.monotonic() - self.shown_at >= _LINE_SECONDS:
            self.shown_at = time.monotonic()
            self.console.print(Text(str(update)), soft_wrap=True)


def numbers_of(update: JobUpdate) -> str:
    """Loss, accuracy, speed and what is left, of those that the job reported; else whatever it reported."""
    texts = [f"{name} {show_value(update.get(name))}" for name in ("loss", "accuracy") if update.get(name) is not None]
    if not texts:
        rest = {
            name: value for name, value in update.values.items() if name not in ("epoch", "epochs", "step", "total")
        }
        return show_mapping(rest)
    speed, eta = update.get("samples_per_second"), update.get("eta_seconds")
    if speed:
        texts.append(f"{speed:,.0f} samples/s" if isinstance(speed, int | float) else f"{speed} samples/s")
    if eta is not None:
        texts.append(f"{show_seconds(eta) if isinstance(eta, int | float) else eta} left")
    return "  ".join(texts)


def _show_value(value: Any, console: Console) -> None:
    if not isinstance(value, TrainingResult):
        console.print(Text.assemble(("done", "bold green"), "" if value is None else f": {show_value(value)}"))
        return
    console.print(Text("done" + (f" ({value.stopped})" if value.stopped else ""), style="bold green"))
    width = max(map(len, value.metrics), default=0)
    for name, number in value.metrics.items():
        if number is not None:
            console.print(Text(f"  {name:<{width}}  {show_value(number)}"))
    for path in value.artifacts.values():
        console.print(Text(f"  {Path(path)}", style="cyan"), soft_wrap=True)


def _word(error: CyxwizError) -> str:
    return f"job failed ({error.cause})" if isinstance(error, JobFailed) else "job failed"


def _show_traceback(error: BaseException, console: Console) -> None:
    for note in getattr(error, "__notes__", ()):
        lines = note.splitlines()
        console.print(Text("\n".join(lines[-_TRACEBACK_LINES:]), style="dim"), soft_wrap=True)
