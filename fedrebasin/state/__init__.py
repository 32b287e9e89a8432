# mypy: implicit-reexport
"""State dicts: what their tensors are, models as vectors, and their mean."""

from fedrebasin.state.kinds import State as State
from fedrebasin.state.kinds import (
    computable,
    demand_numbers,
    demand_same_form,
    demand_same_kinds,
    dtype_name,
    flaws,
    has_mean,
    is_counter,
    is_narrow,
    is_statistic,
    is_variance,
    layer_of,
    real,
    runnable,
    wide,
)
from fedrebasin.state.mean import Integers, Mean, demand_equal, naming
from fedrebasin.state.ties import missing_ties, tied_keys, ties_of, with_ties
from fedrebasin.state.vectors import (
    cosine,
    cosine_matrix,
    cosine_of,
    cosines,
    cosines_by_layer,
    distance,
    gram,
    inner,
    length,
)
