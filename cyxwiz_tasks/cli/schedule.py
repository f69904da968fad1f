"""`cyxwiz schedule add` and `remove`."""

from __future__ import annotations

from typing import Any

import click

from cyxwiz_tasks.cli.options import json_option, print_json
from cyxwiz_tasks.cli.submit import command as submit
from cyxwiz_tasks.cli.submit import prepared
from cyxwiz_tasks.client import Client
from cyxwiz_tasks.errors import InvalidJob

#: options of `cyxwiz submit` that are of what is sent once
_ONCE = ("grid", "at_most", "early_stopping", "wanted", "as_json", "id", "idempotency_key", "after")


@click.group("schedule", short_help="Send a job again and again, or stop doing so.")
def command() -> None:
    """Jobs that the scheduler sends again and again, whether anybody is logged in or not."""


@command.command()
@click.argument("name")
@click.option("--cron", required=True, metavar="EXPRESSION", help="Minute, hour, day, month, weekday: '0 3 * * *'.")
@click.option("--timezone", default="UTC", show_default=True, help="Such as Europe/Berlin.")
@click.option(
    "--catch-up/--no-catch-up", default=True, show_default=True, help="One job for moments at which nothing ran."
)
@click.argument("words", nargs=-1, required=True, metavar="-- SUBMIT_OPTIONS")
@json_option
def add(name: str, words: tuple[str, ...], as_json: bool, **when: Any) -> None:
    """Send a job at each moment that a cron expression names.

    \b
    cyxwiz schedule add nightly --cron "0 3 * * *" --timezone Europe/Berlin -- --model cnn --dataset digits
    cyxwiz schedule add report --cron "*/30 * * * 1-5" -- --task work:report --kwargs '{"days": 7}'

    What follows the two dashes are options of `cyxwiz submit`.
    """
    # Without a parent: a wrong option is then said to be one of `cyxwiz submit`, and --json stays what it was.
    options = submit.make_context("cyxwiz submit", list(words)).params
    for option in _ONCE:
        if options.pop(option) not in (None, False, ()):
            flag = "follow" if option == "wanted" else option
            raise InvalidJob(flag, "is for jobs that are sent once", "Leave it out of a schedule")
    spec, task, arguments, kwargs = (options.pop(option) for option in ("spec", "task", "arguments", "kwargs"))
    job, submission = prepared(spec, task, arguments, kwargs, options)
    with Client() as client:
        chosen = {option: value for option, value in submission.items() if value is not None}
        made = client.schedule(name, job, **when, **chosen)
    print_json(made) if as_json else click.echo(f"{name}: first at {made['next_at']}")


@command.command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Send no more jobs of a schedule. Those that were sent go on."""
    with Client() as client:
        client.unschedule(name)
    print_json({"removed": name}) if as_json else click.echo(f"{name} removed")
