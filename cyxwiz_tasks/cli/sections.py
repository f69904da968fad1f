"""A command with many options, listed under headings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


class SectionedCommand(click.Command):
    """`sections` maps a heading to the names of its options; what is in none of them comes last, under "Options"."""

    sections: dict[str, tuple[str, ...]] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*self.sections, "Options")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                rows[self._heading(parameter.name)].append(record)
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def _heading(self, name: str | None) -> str:
        return next((heading for heading, names in self.sections.items() if name in names), "Options")


def sectioned(short_help: str, **sections: tuple[str, ...]) -> Callable[[Any], SectionedCommand]:
    """`click.command(short_help=...)` for a SectionedCommand with these headings."""

    def decorate(function: Any) -> SectionedCommand:
        made = click.command(cls=SectionedCommand, short_help=short_help)(function)
        made.sections = sections
        return made

    return decorate
