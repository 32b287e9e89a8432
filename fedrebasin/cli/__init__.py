"""The ``fedrebasin`` command: one file for each of its commands."""

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code. See :func:`fedrebasin.cli.app.run`; ^C is one line while that is loaded, too."""
    try:
        from fedrebasin.cli.app import run

        return run(arguments)
    except KeyboardInterrupt:
        import sys

        print("fedrebasin: interrupted", file=sys.stderr)
        return 130
