"""The plane through three models."""

import pytest
import torch

from fedrebasin import MergeError, evaluate
from fedrebasin.analysis import loss_plane

from .nets import make_batches, make_mlp, random_state


def test_the_models_lie_where_the_coordinates_say():
    model = make_mlp()
    a, b, c = (random_state(model, seed) for seed in range(3))
    batches = make_batches()
    found = loss_plane(model, a, b, c, batches, points=2, margin=0.0)
    distances = torch.cdist(found.models, found.models)
    for i, x in enumerate((a, b, c)):
        for j, y in enumerate((a, b, c)):
            squares = sum(float((x[key] - y[key]).square().sum()) for key in x)
            assert float(distances[i, j]) == pytest.approx(squares**0.5)
    # with c right above a the corners of the grid are models
    u = {key: b[key] - a[key] for key in a}
    w = {key: c[key] - a[key] for key in a}
    share = sum(float((u[k] * w[k]).sum()) for k in a) / sum(float(u[k].square().sum()) for k in a)
    c = {key: c[key] - share * u[key] for key in a}
    corners = loss_plane(model, a, b, c, batches, points=2, margin=0.0)
    for (row, column), state in {(0, 0): a, (0, 1): b, (1, 0): c}.items():
        assert float(corners.losses[row, column]) == pytest.approx(evaluate(model, state, batches).loss, rel=1e-6)


def test_models_on_a_line_span_no_plane():
    model = make_mlp()
    a, b = random_state(model, 0), random_state(model, 1)
    middle = {key: (a[key] + b[key]) / 2 for key in a}
    with pytest.raises(MergeError, match="on one line"):
        loss_plane(model, a, b, middle, make_batches())
    with pytest.raises(MergeError, match="one model"):
        loss_plane(model, a, a, b, make_batches())
