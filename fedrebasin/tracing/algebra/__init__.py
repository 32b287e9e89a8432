# mypy: implicit-reexport
"""The algebra of axes: products, concatenations and cuts of parts, and what ties them."""

from fedrebasin.tracing.algebra.boxes import Box, Boxes, boxes
from fedrebasin.tracing.algebra.cutting import blocks, divide, factorise, pieces, stretch
from fedrebasin.tracing.algebra.layouts import axes_of
from fedrebasin.tracing.algebra.parts import (
    LARGEST_SELECTOR,
    UNIT,
    Concat,
    Part,
    Pinned,
    Run,
    Tree,
    case,
    concat,
    product,
    resolve,
    take,
    units,
)
from fedrebasin.tracing.algebra.tying import TWO_PLACES, collapse, scope, settle, tell_apart, tie
from fedrebasin.tracing.algebra.walks import at, cases_in, incomplete, leaves, number_of, pin, selector_of
