"""Errors and warnings that a user can act on: one line that says what, where, and what to do."""

import difflib
import os
import warnings
from collections.abc import Callable, Collection, Iterable
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


def some(names: Collection[str], shown: int) -> str:
    """The first so many names, and how many more there are."""
    first = ", ".join(list(names)[:shown])
    return f"{first} and {len(names) - shown} more" if len(names) > shown else first


def did_you_mean(wrong: str, names: Iterable[str], shown: Callable[[str], object] = str) -> str:
    """A hint at the name that looks most like a wrong one, as it is to be shown; "" if none does."""
    close = difflib.get_close_matches(wrong, list(names), n=1)
    return f" (did you mean {shown(close[0])}?)" if close else ""


def nearby(path: Path) -> str:
    """A hint at what is in its folder under a name like that of a path; "" if nothing is."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    return "" if path.name in names else did_you_mean(path.name, names, path.with_name)


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
    raise RebasinError(f"unknown {option} {value!r}: choose from {', '.join(names)}{did_you_mean(value, names)}")
