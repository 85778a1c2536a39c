"""What all parts of the command share: its classes, and the types of its arguments."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mir_task.errors import MIRError, did_you_mean

SETTINGS: Mapping[str, Any] = {
    # Options are spelled as the harness spells its own, and taken with hyphens too.
    "token_normalize_func": lambda word: word.replace("-", "_"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}
"""Of the command; its parts inherit them."""


class Group(click.Group):
    """Commands whose `MIRError` ends in one message and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except MIRError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.filename is None:
                raise
            where = Path(os.fsdecode(error.filename)).absolute()
            raise click.ClickException(f"{where}: {error.strerror}") from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names; an unknown one is told with those nearest to it."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            known = self.list_commands(ctx)
            hint = did_you_mean(args[0], known)
            ctx.fail(f"no command {args[0]!r}{hint}; there are {', '.join(known)}")


class _Path(click.Path):
    """A path, whose faults name where it was looked for."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            if Path(value).is_absolute():
                raise
            self.fail(f"{error.message} It was looked for at {Path(value).absolute()}.", param, ctx)


FOLDER = _Path(exists=True, file_okay=False, path_type=Path)
FILE = _Path(exists=True, dir_okay=False, path_type=Path)
EITHER = _Path(exists=True, path_type=Path)
NEW_FILE = _Path(dir_okay=False, path_type=Path)
NEW_FOLDER = _Path(file_okay=False, path_type=Path)


def words(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Parts of a text with commas between them."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Numbers from a text with commas between them; 0 is one of a layer alone."""
    parts = value.split(",") if value else []
    least = 0 if parameter.name == "layers" else 1
    if not all(part.strip().isdecimal() and int(part) >= least for part in parts):
        raise click.BadParameter(f"{value!r} is no list of numbers such as 10,100")
    return tuple(int(part) for part in parts)
