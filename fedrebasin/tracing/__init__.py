"""Tracing: permutation specs read off any model through torch.export, one rule per operator."""

from fedrebasin.tracing.checking import check
from fedrebasin.tracing.registry import Call, Value, register_rule
from fedrebasin.tracing.tracer import trace

__all__ = ["Call", "Value", "check", "register_rule", "trace"]
