"""`cyxwiz plan`."""

from __future__ import annotations

from typing import Any

import click

from cyxwiz_tasks.cli.options import json_option, print_json, resource_options, resources_of
from cyxwiz_tasks.client import Client


@click.command(short_help="Say where a job with given needs would run.")
@resource_options
@click.option("--priority", help="low, normal, high or critical.")
@click.option("--owner", help="By default whoever runs this.")
@click.option("--project")
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Say where a job with these needs would run now, and why not elsewhere. Nothing is sent."""
    resources = resources_of(options)
    with Client() as client:
        found = client.plan(resources, **options)
    print_json(found.value) if as_json else click.echo(str(found))
