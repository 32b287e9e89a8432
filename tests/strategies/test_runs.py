"""Whole runs: streaming, nodes' own frames, checkpoints."""

import random

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedrebasin import AlignTo, Identity, MergeMany, Permutation, PermutationSpec, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, CheckpointError, FedRebasin, Frames
from tests.strategies.helpers import ALIGNABLE, AXES, CLIENTS, STRATEGIES, make_reply, make_state, run_round

SPEC = PermutationSpec.from_axes(AXES)


def make_app(spread=0.05, own_order=False):
    """Clients that add noise to what they get; with ``own_order`` each works in an order of units of its own."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        node = context.node_config["partition-id"]
        generator = torch.Generator().manual_seed(100 * node + message.content["config"]["server-round"])
        state = message.content["arrays"].to_torch_state_dict()
        seen.setdefault(node, []).append(state)
        if own_order and message.content["config"]["server-round"] == 1:
            spec = SPEC.bind(state)
            state = Permutation.random(spec, torch.Generator().manual_seed(node)).apply(make_state(7, width=24))
        trained = {}
        for key, tensor in state.items():
            if key.endswith("num_batches_tracked"):
                trained[key] = torch.tensor(100 + node)
            else:
                trained[key] = tensor.float() + spread * torch.randn(tensor.shape, generator=generator)
        metrics = MetricRecord({"num-examples": 5 + node, "train-loss": 0.5 + 0.1 * node})
        return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)

    seen: dict[int, list[dict[str, torch.Tensor]]] = {}
    app.seen = seen
    return app


def run(strategy, start, rounds=3, app=None):
    random.seed(0)
    grid = InlineGrid(app or make_app(), CLIENTS)
    return strategy.start(grid, ArrayRecord(dict(start)), num_rounds=rounds)


def assert_same(a, b, atol=0.0):
    for key in a.arrays:
        assert np.allclose(a.arrays[key].numpy(), b.arrays[key].numpy(), rtol=0, atol=atol), key


# -- streaming --


@pytest.mark.parametrize(
    ("inner", "aligner"), [*((name, Identity()) for name in STRATEGIES), *((name, AlignTo()) for name in ALIGNABLE)]
)
def test_streaming_gives_what_taking_all_at_once_gives(inner, aligner):
    start = make_state(0, width=24)
    at_once = run(Aligned(STRATEGIES[inner](), spec=SPEC, aligner=aligner), start, rounds=2)
    streamed = run(Aligned(STRATEGIES[inner](), spec=SPEC, aligner=aligner, streaming=True), start, rounds=2)
    # FedAdam and its kin divide by the square root of tiny second moments.
    assert_same(at_once, streamed, atol=1e-2 if inner in ("FedAdam", "FedYogi", "FedAdagrad") else 1e-5)
    measured, expected = (result.train_metrics_clientapp[2] for result in (streamed, at_once))
    assert set(measured) == set(expected)
    for name in set(expected) - {"rebasin-seconds"}:
        assert measured[name] == pytest.approx(expected[name], rel=1e-3), name


@pytest.mark.parametrize("aligner", [Identity(), AlignTo()])
def test_metrics_of_arrays_that_were_let_go_of_are_an_error_and_not_those_of_none(aligner):
    def largest(contents, weight):
        return MetricRecord({"largest": max(float(a.numpy().max()) for c in contents for a in c["arrays"].values())})

    def started(**said):
        inner = STRATEGIES["FedAvg"]()
        inner.train_metrics_aggr_fn = largest
        vars(inner).update(said)
        return run(Aligned(inner, spec=SPEC, aligner=aligner, streaming=True), make_state(0, width=24), rounds=1)

    with pytest.raises(RebasinError, match="needs_all = True on the strategy"):
        started()
    assert started(needs_all=True).train_metrics_clientapp[1]["largest"] > 0


def test_streaming_with_frames_reports_fixed_points():
    start = make_state(0, width=24)
    options = {"spec": SPEC, "frame": "client", "streaming": True}
    result = run(FedRebasin(STRATEGIES["FedAvg"](), **options), start, app=make_app(own_order=True, spread=0.01))
    assert result.train_metrics_clientapp[3]["rebasin-fixed-points"] == 1.0
    assert result.train_metrics_clientapp[3]["rebasin-similarity"] > 0.9


def test_streaming_falls_back_on_the_medoid_of_the_first_replies():
    start = make_state(0, width=24)
    result = run(FedRebasin(STRATEGIES["FedAvg"](), spec=SPEC), start, rounds=1, app=make_app(own_order=True))
    streamed = Aligned(STRATEGIES["FedAvg"](), spec=SPEC, streaming=True)
    assert_same(result, run(streamed, start, rounds=1, app=make_app(own_order=True)), atol=1e-5)


def test_streaming_refuses_what_needs_all_models():
    with pytest.raises(RebasinError, match="MergeMany needs all models at once"):
        run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, aligner=MergeMany(), streaming=True), make_state(0), rounds=1)


# -- frames --


def test_a_node_gets_the_global_model_in_its_own_order():
    app = make_app(own_order=True, spread=0.01)
    strategy = Aligned(STRATEGIES["FedAvg"](), spec=SPEC, frame="client")
    result = run(strategy, make_state(0, width=24), rounds=3, app=app)
    spec = SPEC.bind(make_state(7, width=24))
    for node, received in app.seen.items():
        own = Permutation.random(spec, torch.Generator().manual_seed(node)).apply(make_state(7, width=24))
        for state in received[1:]:
            assert torch.allclose(state["0.weight"], own["0.weight"], atol=0.1), node
    assert result.train_metrics_clientapp[3]["rebasin-fixed-points"] == 1.0


def test_matching_again_finds_the_same_permutations_on_the_client_frame():
    app = make_app(own_order=True, spread=0.01)
    strategy = Aligned(STRATEGIES["FedAvg"](), spec=SPEC, frame=Frames(rematch_every=2))
    result = run(strategy, make_state(0, width=24), rounds=4, app=app)
    assert result.train_metrics_clientapp[4]["rebasin-fixed-points"] == 1.0
    once = run(
        Aligned(STRATEGIES["FedAvg"](), spec=SPEC, frame="client"),
        make_state(0, width=24),
        rounds=4,
        app=make_app(own_order=True, spread=0.01),
    )
    assert_same(result, once, atol=1e-5)


def test_fixed_points_are_the_share_of_units_that_stay_when_matched_again():
    frames, spec = Frames(), SPEC.bind(make_state(0, width=10))
    before = Permutation.identity(spec)
    swapped = Permutation(spec, {"P": torch.tensor([1, 0, *range(2, 10)])})
    frames.learn(1, before)
    assert frames.fixed_points() == 1.0, "nothing was matched again"
    frames.learn(1, swapped)
    frames.learn(2, swapped)  # a node's first permutation is compared with nothing
    assert frames.fixed_points() == 0.8
    frames.learn(1, Permutation(spec, dict(swapped)))
    assert frames.fixed_points() == 1.0, "since last asked"


def test_a_node_that_drifted_is_matched_again():
    frames = Frames(rematch_below=2.0)  # always
    run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, frame=frames), make_state(0, width=24), rounds=2)
    assert len(frames.by_node) == CLIENTS


@pytest.mark.parametrize("streaming", [False, True])
def test_a_round_that_is_given_up_leaves_nodes_no_permutation(streaming):
    def failing(spec, reference, candidate):
        raise RebasinError("no")

    frames, aligner = Frames(), AlignTo(failing, reference="medoid")
    strategy = Aligned(STRATEGIES["FedAvg"](), spec=SPEC, aligner=aligner, frame=frames, streaming=streaming)
    arrays, _ = run_round(strategy, make_state(0), [make_reply(make_state(at), at) for at in range(1, CLIENTS + 1)])
    assert arrays is None
    assert frames.by_node == {}


def test_frames_where_nothing_is_aligned_stay_empty_while_streaming():
    frames = Frames()
    strategy = Aligned(STRATEGIES["FedAvg"](), aligner=Identity(), frame=frames, streaming=True)
    arrays, _ = run_round(strategy, make_state(0), [make_reply(make_state(at), at) for at in range(1, CLIENTS + 1)])
    assert arrays is not None
    assert frames.by_node == {}


# -- checkpoints --


@pytest.mark.parametrize("inner", ALIGNABLE)
def test_a_resumed_run_ends_as_an_uninterrupted_one(inner, tmp_path):
    start = make_state(0, width=6)
    options = {"spec": SPEC, "aligner": AlignTo()}
    whole = run(Aligned(STRATEGIES[inner](), **options), start, rounds=4)
    run(Aligned(STRATEGIES[inner](), **options, checkpoint=tmp_path), start, rounds=2)
    random.seed(99)
    strategy = Aligned(STRATEGIES[inner](), **options, checkpoint=tmp_path, resume=True)
    rest = strategy.start(InlineGrid(make_app(), CLIENTS), ArrayRecord(dict(start)), num_rounds=4)
    assert_same(whole, rest)
    assert list(rest.train_metrics_clientapp) == [1, 2, 3, 4]
    assert rest.train_metrics_clientapp[1]["train-loss"] == whole.train_metrics_clientapp[1]["train-loss"]


def test_a_finished_run_is_not_run_again(tmp_path):
    start = make_state(0)
    whole = run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, checkpoint=tmp_path), start, rounds=2)
    app = make_app()
    again = run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, checkpoint=tmp_path, resume=True), start, rounds=2, app=app)
    assert_same(whole, again)
    assert not app.seen


def test_frames_survive_a_resume(tmp_path):
    app = make_app(own_order=True, spread=0.01)
    start = make_state(0, width=24)
    run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, frame="client", checkpoint=tmp_path), start, rounds=1, app=app)
    frames = Frames()
    resumed = Aligned(STRATEGIES["FedAvg"](), spec=SPEC, frame=frames, checkpoint=tmp_path, resume=True)
    run(resumed, start, rounds=2, app=app)
    assert len(frames.by_node) == CLIENTS
    own = Permutation.random(SPEC.bind(start), torch.Generator().manual_seed(3)).apply(make_state(7, width=24))
    assert torch.allclose(app.seen[3][-1]["0.weight"], own["0.weight"], atol=0.1)


@pytest.mark.parametrize("damage", ["truncate", "flip", "meta", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    start = make_state(0)
    whole = run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, checkpoint=tmp_path), start, rounds=3)
    newest = sorted(tmp_path.glob("round-*"))[-1]
    arrays, meta = newest / "arrays.safetensors", newest / "meta.json"
    data = bytearray(arrays.read_bytes())
    if damage == "truncate":
        arrays.write_bytes(data[:-5])
    elif damage == "flip":
        data[-3] ^= 1
        arrays.write_bytes(data)
    elif damage == "meta":
        meta.write_text("{")
    else:
        arrays.unlink()
    resumed = run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, checkpoint=tmp_path, resume=True), start, rounds=3)
    assert_same(whole, resumed)


def test_a_foreign_checkpoint_and_none_that_is_whole_are_refused_by_name(tmp_path):
    run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, checkpoint=tmp_path), make_state(0), rounds=1)
    other = Aligned(STRATEGIES["FedAvg"](), spec=SPEC, checkpoint=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"round-000001: a checkpoint of another model .*0\.weight"):
        run(other, make_state(0, width=9), rounds=2)
    (tmp_path / "round-000001" / "meta.json").write_text("nonsense")
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole: round-000001"):
        run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, checkpoint=tmp_path, resume=True), make_state(0), rounds=2)


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    run(Aligned(STRATEGIES["FedAvg"](), spec=SPEC, checkpoint=tmp_path), make_state(0), rounds=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000004", "round-000005"]
