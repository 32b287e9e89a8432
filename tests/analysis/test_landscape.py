"""The plane through three models."""

import pytest
import torch

from fedrebasin import MergeError, evaluate, recalibrate_batch_norm
from fedrebasin.analysis import loss_plane

from .nets import make_batches, make_cnn, make_mlp, random_state


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


def test_every_point_is_the_model_that_its_coordinates_name():
    model = make_cnn()
    a, b, c = (random_state(model, seed) for seed in range(3))
    batches = make_batches(shape=(1, 4, 4))
    found = loss_plane(model, a, b, c, batches, points=3, margin=0.1)
    assert found.losses.dtype == found.accuracies.dtype == torch.float64
    weights = [key for key in a if a[key].is_floating_point() and "running" not in key]
    (_, _), (length, _), (along, height) = found.models.tolist()
    assert length == pytest.approx(sum(float((b[key] - a[key]).square().sum()) for key in weights) ** 0.5)
    assert along**2 + height**2 == pytest.approx(sum(float((c[key] - a[key]).square().sum()) for key in weights))
    for row, up in enumerate(found.y.tolist()):
        for column, right in enumerate(found.x.tolist()):
            to_c = up / height
            to_b = (right - along * to_c) / length
            state = {
                key: a[key] + to_b * (b[key] - a[key]) + to_c * (c[key] - a[key])
                if a[key].is_floating_point()
                else a[key]
                for key in a
            }
            state = {key: tensor.clamp_min(0) if "running_var" in key else tensor for key, tensor in state.items()}
            score = evaluate(model, state, batches)
            assert float(found.losses[row, column]) == pytest.approx(score.loss)
            assert float(found.accuracies[row, column]) == pytest.approx(score.accuracy)
    anew = loss_plane(model, a, b, c, batches, points=3, margin=0.1, recalibrate=batches)
    expected = evaluate(model, recalibrate_batch_norm(model, state, batches), batches).loss
    assert float(anew.losses[-1, -1]) == pytest.approx(expected)


def test_far_from_the_models_no_variance_is_negative():
    model = make_cnn()
    states = [random_state(model, seed) for seed in range(3)]
    found = loss_plane(model, *states, make_batches(shape=(1, 4, 4)), points=3, margin=20.0)
    assert bool(torch.isfinite(found.losses).all())


def test_models_that_do_not_fit_are_refused():
    model = make_mlp()
    a, b, c = (random_state(model, seed) for seed in range(3))
    with pytest.raises(MergeError, match=r"0\.bias: shapes"):
        loss_plane(model, a, b, {**c, "0.bias": torch.zeros(3)}, make_batches())
