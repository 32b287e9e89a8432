"""The ``fedrebasin`` command: one file for each of its commands."""

from fedrebasin.cli.app import main

__all__ = ["main"]
