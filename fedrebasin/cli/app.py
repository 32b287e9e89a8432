"""The command itself: its parts, and what it says when something is wrong."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import click
import typer

import fedrebasin
from fedrebasin.cli.barrier import barrier
from fedrebasin.cli.cite import cite
from fedrebasin.cli.compare import compare
from fedrebasin.cli.diff import diff
from fedrebasin.cli.doctor import doctor
from fedrebasin.cli.merge import merge
from fedrebasin.cli.new import new
from fedrebasin.cli.reproduce import reproduce
from fedrebasin.cli.show import FailedError, StoppedError
from fedrebasin.cli.simulate import simulate
from fedrebasin.cli.spec import spec
from fedrebasin.errors import RebasinError, did_you_mean, nearby

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="fedrebasin",
    help="Permutation-aligned federated learning and model merging.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (compare, merge, barrier, diff, spec, reproduce, simulate, new, doctor, cite):
    app.command()(command)


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
    """Permutation-aligned federated learning and model merging."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code.

    Args:
        arguments: those of this process if None.

    Returns:
        0; 1 if what was asked for failed; 2 for wrong use or unusable input; 130 if interrupted; each but 0 with one
        line on standard error.
    """
    try:
        code = app(None if arguments is None else list(arguments), standalone_mode=False, prog_name="fedrebasin")
    except RebasinError as error:
        return _complain(str(error), WRONG_USE)
    except click.ClickException as error:
        return _complain(_with_commands(error), error.exit_code)
    except OSError as error:
        return _complain(_of_file(error), WRONG_USE)
    except FailedError as error:
        return _complain(str(error), FAILED)
    except StoppedError as error:
        return _complain(f"interrupted: {error}", INTERRUPTED)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _with_commands(error: click.ClickException) -> str:
    """The message; where a command was misspelt, with the commands that there are."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if message.startswith("No such command") and context is not None and isinstance(context.command, click.Group):
        wrong, _, _ = message.partition(" Did you mean")
        names = context.command.list_commands(context)
        hint = did_you_mean(wrong.split("'")[1], names)
        return f"{wrong} Choose from {', '.join(names)}{hint}"
    return message


def _of_file(error: OSError) -> str:
    """What is wrong with which file, and the closest name where there is none."""
    if error.filename is None or error.strerror is None:
        return str(error)
    path = Path(os.fsdecode(error.filename))
    return f"{path}: {error.strerror}{nearby(path) if isinstance(error, FileNotFoundError) else ''}"


def _complain(message: str, code: int) -> int:
    if message:  # without arguments the help was all there is to say
        print(f"fedrebasin: {' '.join(message.split())}", file=sys.stderr)
    return code
