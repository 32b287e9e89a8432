"""What commands print: a table for people, or JSON alone on standard output."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from fedrebasin.cli.tables import fit
from fedrebasin.writing import json_text

AsJson = typer.Option("--json", help="Print JSON, and nothing else, to standard output.")


class StoppedError(Exception):
    """The user pressed ^C; the message says what is left and where."""


class FailedError(Exception):
    """What was asked for was done, and did not succeed: exit code 1."""


@contextmanager
def leaving(what: Callable[[], str]) -> Iterator[None]:
    """Say on ^C what is finished and where it lies.

    Raises:
        StoppedError: with that.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(what()) from None


def print_json(content: Any) -> None:
    """Write JSON to standard output; numbers that it has no form for become null."""
    sys.stdout.write(json_text(content))


def print_table(table: Table, lines: Sequence[str] = (), *, stderr: bool = False) -> None:
    """Print a table of texts as it fits, and lines below it that are not wrapped, such as paths."""
    console = Console(stderr=stderr)
    console.print(fit(table, console.width))
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr, flush=True)
