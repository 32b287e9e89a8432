import inspect
import random

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian
from torch import nn

from fedrebasin import (
    AlignTo,
    Identity,
    Permutation,
    PermutationSpec,
    RebasinError,
    SpecError,
    average,
)
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import (
    Aligned,
    Calibrated,
    FedMergeMany,
    FedRebasin,
    FedRegMean,
    FedRidgeHead,
    FedWideAvg,
    Options,
)
from tests.strategies.helpers import (
    AXES,
    CLIENTS,
    COMMON,
    STRATEGIES,
    make_reply,
    make_state,
    run_round,
)

SPEC = PermutationSpec.from_axes(AXES)


def federation(seed: int) -> ClientApp:
    """Clients that add noise of their own to what they get."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        node = context.node_config["partition-id"]
        rng = np.random.default_rng([seed, node, message.content["config"]["server-round"]])
        arrays = {}
        for key, array in message.content["arrays"].items():
            values = array.numpy()
            if key.endswith("num_batches_tracked"):  # its own count, whatever dtype the server made of it
                arrays[key] = Array(np.asarray(100 + node, dtype=np.int64))
            else:
                arrays[key] = Array(np.asarray(values + rng.normal(size=values.shape), dtype=values.dtype))
        metrics = MetricRecord({"num-examples": 5 + node, "train-loss": 0.5 + 0.1 * node})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    return app


def final(strategy, start, rounds=3):
    random.seed(0)
    grid = InlineGrid(federation(seed=3), CLIENTS)
    return strategy.start(grid, ArrayRecord(dict(start)), num_rounds=rounds)


@pytest.mark.parametrize("name", STRATEGIES)
def test_identity_aligner_is_the_inner_strategy_bit_for_bit(name):
    # Bare QFedAvg cannot take integers; DP clips by a norm in which the global model's restored counters count.
    start = make_state(seed=0, integers=name not in ("QFedAvg", "DP-server"))
    bare = final(STRATEGIES[name](), start)
    wrapped = final(Aligned(STRATEGIES[name](), aligner=Identity()), start)
    assert list(wrapped.arrays) == list(start)
    dtypes_kept = True
    for key, tensor in start.items():
        expected, actual = bare.arrays[key].numpy(), wrapped.arrays[key].numpy()
        assert actual.dtype == tensor.numpy().dtype
        dtypes_kept &= expected.dtype == actual.dtype
        if expected.dtype == actual.dtype:
            assert np.array_equal(expected, actual)
    if dtypes_kept or name in ("FedAvg", "FedMedian", "FedTrimmedAvg", "FedProx"):
        assert bare.train_metrics_clientapp == wrapped.train_metrics_clientapp


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_round_with_the_identity_aligner_differs_by_the_dtype_only(name):
    start = make_state(seed=0, integers=name != "QFedAvg")
    bare = final(STRATEGIES[name](), start, rounds=1)
    wrapped = final(Aligned(STRATEGIES[name](), aligner=Identity()), start, rounds=1)
    for key, tensor in start.items():
        expected = bare.arrays[key].numpy()
        if tensor.dtype == torch.int64:
            expected = np.rint(expected)
        assert np.array_equal(expected.astype(tensor.numpy().dtype), wrapped.arrays[key].numpy()), key


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("strategy", [FedRebasin, FedMergeMany])
def test_any_inner_strategy_aggregates_aligned_models(strategy, name):
    if name == "DP-client" or (name == "DP-server" and strategy is FedMergeMany):
        with pytest.raises(RebasinError, match="DifferentialPrivacy"):  # see test_orders.py
            strategy(STRATEGIES[name](), spec=SPEC)
        return
    start = make_state(seed=0)
    result = final(strategy(STRATEGIES[name](), spec=SPEC), start, rounds=2)
    for key, tensor in start.items():
        assert result.arrays[key].numpy().dtype == tensor.numpy().dtype
        assert np.isfinite(result.arrays[key].numpy()).all()
    measured = result.train_metrics_clientapp[2]
    for metric in ("similarity", "distance", "units-moved", "seconds", "replies-set-aside"):
        assert np.isfinite(measured[f"rebasin-{metric}"])


@pytest.mark.parametrize("strategy", [FedRebasin, FedMergeMany])
@pytest.mark.parametrize("seed", range(3))
def test_permuted_copies_of_one_model_average_to_that_model(strategy, seed):
    state = make_state(seed=seed, width=9)
    generator = torch.Generator().manual_seed(seed)
    spec = SPEC.bind(state)
    copies = [Permutation.random(spec, generator).apply(state) for _ in range(CLIENTS)]
    replies = [make_reply(copy, node_id=i + 1) for i, copy in enumerate(copies)]
    arrays, metrics = run_round(strategy(FedAvg(**COMMON), spec=SPEC), make_state(seed=50, width=9), replies)
    merged = arrays.to_torch_state_dict()
    # The order of the units is free; each of the copies is the same model.
    order = [torch.nonzero((merged["0.weight"] - row).abs().sum(1) < 1e-4).item() for row in state["0.weight"]]
    assert sorted(order) == list(range(9))
    assert torch.allclose(merged["3.weight"][:, order], state["3.weight"], atol=1e-5)
    assert torch.allclose(merged["1.running_var"][order], state["1.running_var"], atol=1e-5)
    assert metrics["rebasin-similarity"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["rebasin-distance"] == pytest.approx(0.0, abs=1e-4)


def test_auto_reference_is_the_global_model_when_clients_started_from_it():
    start = make_state(seed=0, width=32)
    spec = SPEC.bind(start)
    close = [
        {k: v + 0.05 * torch.randn_like(v) if v.is_floating_point() else v for k, v in start.items()} for _ in "ab"
    ]
    moved = Permutation.random(spec, torch.Generator().manual_seed(1)).apply(close[0])
    replies = [make_reply(s, node_id=i + 1) for i, s in enumerate([*close * 3, moved, close[1]])]
    arrays, _ = run_round(FedRebasin(FedAvg(**COMMON), spec=SPEC), start, replies)
    assert torch.allclose(arrays.to_torch_state_dict()["0.weight"], start["0.weight"], atol=0.3)


def test_auto_reference_is_no_untrained_global_model_for_independent_clients():
    states = [make_state(seed=s, width=32) for s in range(CLIENTS)]
    start = make_state(seed=99, width=32)
    replies = [make_reply(s, node_id=i + 1) for i, s in enumerate(states)]
    arrays, _ = run_round(FedRebasin(FedAvg(**COMMON), spec=SPEC), start, replies)
    medoid = AlignTo(reference="medoid")(SPEC.bind(states[0]), states, [10.0] * CLIENTS)
    expected = average(medoid.states)
    assert torch.allclose(arrays.to_torch_state_dict()["0.weight"], expected["0.weight"], atol=1e-5)


def test_the_replies_are_not_changed():
    states = [make_state(seed=s) for s in range(CLIENTS)]
    replies = [make_reply(s, node_id=i + 1) for i, s in enumerate(states)]
    before = [reply.content["arrays"].object_id for reply in replies]
    run_round(FedRebasin(FedAvg(**COMMON), spec=SPEC), make_state(seed=99), replies)
    assert [reply.content["arrays"].object_id for reply in replies] == before


def test_wide_average_is_fedavg():
    start = make_state(seed=0)
    bare, wide = final(FedAvg(**COMMON), start, rounds=1), final(FedWideAvg(FedAvg(**COMMON)), start, rounds=1)
    for key, tensor in start.items():
        if tensor.is_floating_point():
            assert np.array_equal(bare.arrays[key].numpy(), wide.arrays[key].numpy())


class Doubling:
    rewrites_weights = True

    def __call__(self, round_):
        return Calibrated({k: v * 2 for k, v in round_.state.items()}, {"beta": 2.0})


class Failing:
    rewrites_weights = False

    def __call__(self, round_):
        raise RuntimeError("boom")


def test_calibrators_run_in_order_and_beta_stays_on_the_strategy():
    start = make_state(seed=0)
    plain = final(Aligned(FedAvg(**COMMON), aligner=Identity()), start, rounds=1)
    strategy = Aligned(FedAvg(**COMMON), aligner=Identity(), calibrators=(Doubling(), Doubling()))
    result = final(strategy, start, rounds=1)
    assert np.allclose(result.arrays["0.weight"].numpy(), 4 * plain.arrays["0.weight"].numpy())
    assert strategy.beta == 2.0
    assert result.train_metrics_clientapp[1]["beta"] == 2.0


def test_a_probe_that_raises_is_reported_and_changes_nothing():
    start = make_state(seed=0)
    plain = final(Aligned(FedAvg(**COMMON), aligner=Identity()), start, rounds=1)
    probed = final(Aligned(FedAvg(**COMMON), aligner=Identity(), probes=(Failing(),)), start, rounds=1)
    assert np.array_equal(plain.arrays["0.weight"].numpy(), probed.arrays["0.weight"].numpy())
    assert probed.train_metrics_clientapp[1]["rebasin-failing-failed"] == 1.0


@pytest.mark.parametrize("inner", [FedAvgM, FedAdam])
def test_a_calibrator_that_rewrites_weights_refuses_an_inner_strategy_with_state(inner):
    with pytest.raises(RebasinError, match=f"Doubling rewrites weights after {inner.__name__}"):
        Aligned(inner(), aligner=Identity(), calibrators=(Doubling(),))


def test_a_spec_of_another_model_is_refused_with_all_misfits():
    replies = [make_reply(make_state(seed=s), node_id=s + 1) for s in range(2)]
    with pytest.raises(SpecError, match=r"other\.weight: missing.*0\.weight: shape"):
        run_round(
            FedRebasin(spec=PermutationSpec.from_axes({"other.weight": ("P", None)})), make_state(seed=0), replies
        )


def test_bad_arguments_are_refused():
    with pytest.raises(SpecError, match="needs spec="):
        Aligned()
    with pytest.raises(RebasinError, match="device 'gpu'"):
        Aligned(spec=SPEC, device="gpu")


def test_every_named_strategy_takes_every_option_of_the_general_one(tmp_path):
    own = {"self", "strategy", "spec", "aligner"}
    assert set(inspect.signature(Aligned).parameters) - own == set(Options.__annotations__)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    spec = PermutationSpec.trace(model, torch.zeros(2, 4))
    options = {
        "probes": (Failing(),),
        "device": "cpu",
        "frame": "client",
        "streaming": True,
        "workers": 3,
        "max_weight_ratio": None,
        "keep_memory": True,
    }
    options |= {"checkpoint": tmp_path, "resume": True, "query_type": "train", "calibrators": (Doubling(),)}
    options |= {"log": print, "sends": "model"}
    assert set(options) == set(Options.__annotations__)
    named = [
        FedRebasin(spec=spec, **options),
        FedMergeMany(FedMedian(), spec=spec, **options),  # needs all replies, whether they are streamed or not
        FedWideAvg(**options),
        FedRegMean(FedMedian(), spec=spec, **options),
        FedRidgeHead(spec=spec, model=model, example_inputs=torch.zeros(1, 4), **options),
    ]
    for strategy in named:
        assert strategy.streaming
        assert strategy.resume
        assert strategy.workers == 3
        assert strategy.query_type == "train"
        assert strategy.log is print
        assert strategy.alignment.frames is not None
        assert any(isinstance(calibrator, Doubling) for calibrator in strategy.calibrators)


def test_evaluation_is_the_inner_strategys_own():
    strategy = FedRebasin(FedAvg(min_evaluate_nodes=3, min_available_nodes=3), spec=SPEC)
    arrays = ArrayRecord(dict(make_state(seed=0)))
    messages = list(strategy.configure_evaluate(1, arrays, ConfigRecord(), InlineGrid(ClientApp(), 3)))
    assert {message.metadata.message_type for message in messages} == {"evaluate"}
    assert len(messages) == 3
