"""Errors that a user can act on: one line that says what, where, and what to do."""

from __future__ import annotations


class RebasinError(ValueError):
    """Base class of every error that fedrebasin raises on purpose."""


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
