"""Errors and warnings that a user can act on: one line that says what, where, and what to do."""

import difflib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path


class RebasinError(ValueError):
    """Base class of every error that fedrebasin raises on purpose: a line, whatever names it repeats."""

    def __str__(self) -> str:
        return printable(super().__str__())


class SpecError(RebasinError):
    """A permutation spec is malformed, does not fit a state dict, or changes the function."""


class TraceError(SpecError):
    """A model cannot be read by the tracer; the message says how to go on without it."""


class MatchingError(RebasinError):
    """Models cannot be matched: other keys, other shapes, non-finite weights."""


class MergeError(RebasinError):
    """Models cannot be merged: none given, weights that sum to zero, other keys."""


class CalibrationError(RebasinError):
    """A calibration has no usable data or statistics."""


class DataError(RebasinError):
    """A data set, a partition or a file cannot be read as what it should be."""


class CoverageWarning(UserWarning):
    """A permutation spec leaves so much in place that models are averaged out of step, in whole or in part."""


def deprecated(old: str, new: str) -> None:
    """Warn whoever called the caller that a name of 0.1 has another one now."""
    warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=3)


def printable(text: str) -> str:
    """A text with spaces for what would break a line or steer a terminal: names come from strangers."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)


def one_line(error: BaseException, longest: int = 300) -> str:
    """The kind of an error from elsewhere and the first line of what it says.

    Args:
        error: whatever was raised.
        longest: characters; torch prints graphs and kernels.
    """
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    text = printable(" ".join(f"{type(error).__name__}: {said}".split())).removesuffix(":")
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def reason(error: Exception) -> str:
    """What an error says: our own are a sentence already, of others the kind is told as well, see :func:`one_line`."""
    return str(error) if isinstance(error, RebasinError) else one_line(error)


def nearby(path: Path) -> str:
    """A hint at what is in its folder under a name like that of a path; "" if nothing is."""
    try:
        close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    except OSError:
        close = []
    return f" (did you mean {path.with_name(close[0])}?)" if close and close[0] != path.name else ""


def choose(option: str, value: str, allowed: Iterable[str]) -> str:
    """The value of an option, if it is one of those allowed.

    Args:
        option: its name, for the message.
        value: what was asked for.
        allowed: the names to choose from.

    Returns:
        ``value``.

    Raises:
        RebasinError: with what is allowed and the closest name.
    """
    names = list(allowed)
    if value in names:
        return value
    close = difflib.get_close_matches(value, names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise RebasinError(f"unknown {option} {value!r}: choose from {', '.join(names)}{hint}")
