"""What may be permuted: axes, groups, the spec in its notations, and permutations."""

from fedrebasin.spec import json
from fedrebasin.spec.axis import Axis, Factor, Layout
from fedrebasin.spec.group import Group, Unpermuted
from fedrebasin.spec.permutation import Permutation
from fedrebasin.spec.plain_stack import plain_stack
from fedrebasin.spec.spec import PermutationSpec
from fedrebasin.spec.text import coverage_gaps, warn_of_gaps

__all__ = [
    "Axis",
    "Factor",
    "Group",
    "Layout",
    "Permutation",
    "PermutationSpec",
    "Unpermuted",
    "coverage_gaps",
    "json",
    "plain_stack",
    "warn_of_gaps",
]
