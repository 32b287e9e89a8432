"""Why a merge works or fails: measures of connectivity."""

from fedrebasin.analysis.barrier import Barrier, barrier_value, interpolate, loss_barrier

__all__ = ["Barrier", "barrier_value", "interpolate", "loss_barrier"]
