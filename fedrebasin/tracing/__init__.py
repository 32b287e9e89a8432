"""Tracing: permutation specs read off any model through torch.export, one rule per operator."""

from fedrebasin.tracing.checking import check, largest_change
from fedrebasin.tracing.registry import Call, Value, register_rule
from fedrebasin.tracing.tracer import trace

__all__ = ["Call", "Value", "check", "largest_change", "register_rule", "trace"]
