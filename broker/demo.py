"""`cyxwiz demo`: the newcomer's first minute. A stack, a node, a real training, its result, and everything stopped."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from broker.cli import say_on, show_flower
from broker.stack import Plan, StackRunsAlready, running
from cyxwiz_tasks.cli.follow import follow
from cyxwiz_tasks.cli.node_table import show_nodes
from cyxwiz_tasks.client import Client
from cyxwiz_tasks.settings import Settings
from cyxwiz_tasks.training_job import TrainingJob

#: 98 to 99 % of the held-out digits, in a few seconds on one core
DIGITS = TrainingJob(
    name="digits-cnn",
    model="cnn",
    dataset="digits",
    epochs=15,
    batch_size=64,
    optimizer="adamw",
    learning_rate=4e-3,
    schedule="onecycle",
    seed=1,
)


def run(settings: Settings, console: Console, stop: Callable[[], bool]) -> int:
    """Run the demonstration and return the exit status: 0 when the training succeeded."""
    console.rule("[bold]CyxWiz Tasks: a real training through the queue")
    with _stack(settings, console, stop) as broker_url:
        if stop():
            return 130
        client = Client(broker_url)
        console.print("\nNodes that registered, with what they can do:", style="bold")
        show_nodes(client.nodes(), console)
        console.print(f"\nSubmitting {DIGITS.name}: {DIGITS.model} on {DIGITS.dataset}", style="bold")
        status = follow(client.submit(DIGITS), console)
        console.print()
        client.close()
    return status


@contextmanager
def _stack(settings: Settings, console: Console, stop: Callable[[], bool]) -> Iterator[str]:
    """The broker's URL of this home's stack: the one that runs already, or one of our own that ends with us."""
    try:
        with running(Plan(), settings, say_on(console), cancelled=stop) as stack:
            if not stop():
                show_flower(console, stack)
            yield stack.broker_url
            console.print("stopping what was started", style="dim")
    except StackRunsAlready:
        console.print(f"using the stack that runs in {settings.home} on {platform.node()}", style="dim")
        yield settings.broker()
