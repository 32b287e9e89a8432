"""Tracing: permutation specs read off any model through torch.export, one rule per operator."""

from fedrebasin.tracing.proof import check, derive, largest_change
from fedrebasin.tracing.registry import Call, register_rule
from fedrebasin.tracing.tracer import trace
from fedrebasin.tracing.values import Value

__all__ = ["Call", "Value", "check", "derive", "largest_change", "register_rule", "trace"]
