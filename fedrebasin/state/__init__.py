"""State dicts: what their tensors are, models as vectors, and their mean."""

from fedrebasin.state.kinds import (
    State,
    computable,
    demand_numbers,
    demand_same_form,
    demand_same_kinds,
    flaws,
    has_mean,
    is_counter,
    real,
    wide,
)
from fedrebasin.state.mean import Integers, Mean, demand_equal, naming
from fedrebasin.state.vectors import cosine, cosine_of, cosines, cosines_by_layer, distance, gram, inner, length

__all__ = [
    "Integers",
    "Mean",
    "State",
    "computable",
    "cosine",
    "cosine_of",
    "cosines",
    "cosines_by_layer",
    "demand_equal",
    "demand_numbers",
    "demand_same_form",
    "demand_same_kinds",
    "distance",
    "flaws",
    "gram",
    "has_mean",
    "inner",
    "is_counter",
    "length",
    "naming",
    "real",
    "wide",
]
