"""The command itself: its parts, and what it says when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import click
import typer

import fedrebasin
from fedrebasin.cli.compare import compare
from fedrebasin.cli.spec import spec
from fedrebasin.errors import RebasinError

WRONG_USE, INTERRUPTED = 2, 130

app = typer.Typer(
    name="fedrebasin",
    help="Permutation-aligned federated learning: compare strategies, look at permutation specs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(compare)
app.command()(spec)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedrebasin {fedrebasin.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Permutation-aligned federated learning: compare strategies, look at permutation specs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code.

    Args:
        arguments: those of this process if None.

    Returns:
        0; 2 for wrong use or unusable input, with one line on standard error; 130 if interrupted.
    """
    try:
        code = app(None if arguments is None else list(arguments), standalone_mode=False, prog_name="fedrebasin")
    except RebasinError as error:
        return _complain(str(error), WRONG_USE)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except OSError as error:
        return _complain(str(error), WRONG_USE)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    print(f"fedrebasin: {' '.join(message.split())}", file=sys.stderr)
    return code
