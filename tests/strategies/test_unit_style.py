"""Hooks called by hand, as unit tests of strategies do it: made replies, mocks, no round before.

Nobody can say then who was asked, or what the global model was; that is judged after a ``configure_train`` only.
"""

from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
from fedrebasin.simulations.engines import enter_task
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedAvgM,
    FedMedian,
    Krum,
    MultiKrum,
)

from fedrebasin import AlignTo, Identity, MergeMany, Permutation, PermutationSpec, RebasinError
from fedrebasin.strategies import Aligned, AlignmentProbe, BatchNormRecalibration, FedRebasin, Frames
from tests.strategies.helpers import ALIGNABLE, AXES, STRATEGIES, make_reply, make_state

SPEC = PermutationSpec.from_axes(AXES)
REPLIES = 9
#: Strategies that must have seen a global model before replies, with us or without.
NEED_A_MODEL = ("FedAvgM", "FedAdam", "FedAdagrad", "FedYogi", "QFedAvg", "DP-server")
ALONE = [name for name in STRATEGIES if name not in NEED_A_MODEL]


def made_up(state, num_examples=10, **metrics):
    """A reply that is no message of any grid."""
    message = Mock(spec=Message)
    arrays = state if isinstance(state, ArrayRecord) else ArrayRecord(dict(state))
    record = MetricRecord({"num-examples": num_examples, "train-loss": 0.5, **metrics})
    message.content = RecordDict({"arrays": arrays, "metrics": record})
    message.has_error.side_effect = lambda: False
    message.has_content.side_effect = lambda: True
    return message


MAKE = {"mocks": made_up, "messages of one node": make_reply}


def states(count=REPLIES, moved=False):
    found = [make_state(seed, integers=False) for seed in range(1, count + 1)]
    base = make_state(1, integers=False)
    for seed, state in enumerate(found):
        for key in state:
            state[key] = base[key] + 0.01 * state[key]
        if moved and seed:
            generator = torch.Generator().manual_seed(seed)
            found[seed] = Permutation.random(SPEC.bind(state), generator).apply(state)
    return found


def prepare(strategy):
    """What some strategies have from the rounds before, set as a test sets it."""
    start = ArrayRecord(make_state(1, integers=False))
    momentum = isinstance(getattr(strategy, "strategy", strategy), FedAvgM)
    strategy.current_arrays = start if momentum else {key: array.numpy() for key, array in start.items()}
    return strategy


def assert_same_arrays(expected, found, atol=0.0):
    assert list(found) == list(expected)
    for key, array in expected.items():
        np.testing.assert_allclose(found[key].numpy(), array.numpy(), rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_replies_alone_give_what_the_strategy_gives(name, streaming, make):
    models = states()
    expected, metrics = STRATEGIES[name]().aggregate_train(1, [make(state) for state in models])
    strategy = Aligned(STRATEGIES[name](), aligner=Identity(), streaming=streaming)
    for number in (1, 2):
        replies = (make(state) for state in models)
        found, said = strategy.aggregate_train(number, replies if streaming else list(replies))
        assert said == metrics
        assert_same_arrays(expected, found, atol=1e-6)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "FedAdagrad", "FedYogi"])
def test_a_strategy_may_be_given_its_state_through_the_wrapper(name, streaming, make):
    models = states()
    plain = prepare(STRATEGIES[name]())
    wrapped = prepare(Aligned(STRATEGIES[name](), aligner=Identity(), streaming=streaming))
    for number in (1, 2):
        expected, metrics = plain.aggregate_train(number, [make(state) for state in models])
        found, said = wrapped.aggregate_train(number, [make(state) for state in models])
        assert said == metrics
        assert_same_arrays(expected, found, atol=1e-3 if streaming else 1e-6)  # steps of Adam are quotients


ALIGNERS = {"auto": AlignTo(), "medoid": AlignTo(reference="medoid"), "many": MergeMany()}
#: MergeMany does not stream, and where clients clip the server does not align.
WAYS = [(name, False) for name in ALIGNERS] + [("auto", True), ("medoid", True)]


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize(("aligner", "streaming"), WAYS)
@pytest.mark.parametrize("name", [name for name in ALONE if name in ALIGNABLE])
def test_replies_alone_are_aligned_with_one_another(name, aligner, streaming, make):
    strategy = Aligned(STRATEGIES[name](), spec=SPEC, aligner=ALIGNERS[aligner], streaming=streaming)
    found, metrics = strategy.aggregate_train(1, [make(state) for state in states(moved=True)])
    assert metrics["rebasin-units-moved"] > 0.3
    assert metrics["rebasin-replies-set-aside"] == 0
    # the models are one, but for noise and order: so is what comes of them
    base = states(1)[0]
    back = AlignTo(reference=base)(SPEC, [found.to_torch_state_dict()]).merged
    for key, tensor in base.items():
        assert (back[key] - tensor).abs().max() < 0.1, key


def test_weights_and_metrics_count_as_ever():
    arrays = [ArrayRecord([np.full(4, value)]) for value in (1.0, 3.0)]
    replies = [made_up(record, n, loss=loss) for record, n, loss in zip(arrays, (1, 2), (0.5, 2.0), strict=True)]
    found, metrics = Aligned(FedAvg(), aligner=Identity()).aggregate_train(1, replies)
    np.testing.assert_allclose(found.to_numpy_ndarrays()[0], np.full(4, 7 / 3))
    assert metrics["loss"] == 1.5


@pytest.mark.parametrize("streaming", [False, True])
def test_krum_and_multi_krum_choose_and_a_median_is_a_median(streaming):
    def aggregate(strategy, *values):
        wrapped = Aligned(strategy, aligner=Identity(), streaming=streaming)
        found, _ = wrapped.aggregate_train(1, [made_up(ArrayRecord([np.full(3, value)])) for value in values])
        return found.to_numpy_ndarrays()[0].tolist()

    assert aggregate(Krum(num_malicious_nodes=1), 0.0, 5.0, 6.0) in ([5.0] * 3, [6.0] * 3)
    assert aggregate(MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2), 4.0, 5.0, 60.0) == [4.5] * 3
    assert aggregate(FedMedian(), 1.0, 2.0, 60.0) == [2.0] * 3


def test_arrays_without_dimensions_are_aggregated():
    strategy = Aligned(FedAvgM(server_learning_rate=0.5), aligner=Identity())
    strategy.current_arrays = ArrayRecord([np.array(0.0)])
    found, _ = strategy.aggregate_train(1, [made_up(ArrayRecord([np.array(x)]), n) for x, n in ((1.0, 1), (4.0, 2))])
    assert found["0"].numpy().shape == ()
    assert found["0"].numpy() == pytest.approx(1.5)


def test_every_round_by_hand_may_be_of_another_form():
    strategy = Aligned(FedAvg(), aligner=Identity())
    for shape in ((2,), (3, 1)):
        found, _ = strategy.aggregate_train(1, [made_up(ArrayRecord([np.ones(shape)]))])
        assert found["0"].numpy().shape == shape


@pytest.mark.parametrize("replies", [[], "errors"])
def test_nothing_to_aggregate_is_the_strategys_to_answer(replies):
    enter_task()
    if replies:
        asked = Message(RecordDict(), 1, "train")
        replies = [Message(Error(0, "gone"), reply_to=asked)]
    for wrap in (lambda strategy: strategy, lambda strategy: Aligned(strategy, aligner=Identity())):
        assert wrap(FedAvg()).aggregate_train(1, replies) == (None, None)


def test_other_forms_than_the_first_are_still_set_aside():
    good, other = ArrayRecord([np.ones(2)]), ArrayRecord([np.ones(3)])
    replies = [made_up(record) for record in (good, other, good)]
    _, metrics = Aligned(FedAvg(), aligner=Identity()).aggregate_train(1, replies)
    assert metrics["rebasin-replies-set-aside"] == 1


def configured(strategy, nodes=(1, 2)):
    enter_task()
    grid = MagicMock()
    grid.get_node_ids.return_value = list(nodes)
    arrays = ArrayRecord(make_state(1, integers=False))
    return list(strategy.configure_train(1, arrays, ConfigRecord(), grid))


@pytest.mark.parametrize("streaming", [False, True])
def test_after_a_configure_train_only_those_who_were_asked_may_answer(streaming):
    strategy = Aligned(FedAvg(), aligner=Identity(), streaming=streaming)
    assert len(configured(strategy)) == 2
    model = make_state(2, integers=False)
    replies = [make_reply(model, node_id) for node_id in (1, 2, 3, 1)] + [made_up(model)]
    _, metrics = strategy.aggregate_train(1, replies)
    assert metrics["rebasin-replies-set-aside"] == 3


def test_a_model_that_was_seen_is_the_form_and_the_reference():
    strategy = Aligned(FedAvg(), spec=SPEC, aligner=AlignTo())
    configured(strategy)
    with_more = {**make_state(2, integers=False), "more": torch.zeros(2)}
    _, metrics = strategy.aggregate_train(1, [make_reply(make_state(2, integers=False), 1), make_reply(with_more, 2)])
    assert metrics["rebasin-replies-set-aside"] == 1


def test_privacy_without_a_model_to_align_to_is_an_error():
    inner = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1.0, 2)
    with pytest.raises(RebasinError, match="call configure_train first"):
        FedRebasin(inner, spec=SPEC).aggregate_train(1, [make_reply(state) for state in states(2)])


def test_calibrators_and_probes_that_ask_clients_say_that_there_are_none():
    strategy = Aligned(FedAvg(), spec=SPEC, calibrators=[BatchNormRecalibration()], probes=[AlignmentProbe()])
    found, metrics = strategy.aggregate_train(1, [make_reply(state) for state in states(3)])
    assert found is not None
    assert metrics["rebasin-batch-norm-recalibration-failed"] == 1
    assert "rebasin-alignment-probe-failed" not in metrics


def test_frames_that_were_given_wait_for_a_model():
    found, _ = Aligned(FedAvg(), spec=SPEC, frame=Frames()).aggregate_train(1, [make_reply(s) for s in states(3, True)])
    assert found is not None


def test_integers_along_groups_need_no_model_either():
    mask = {**states(1)[0], "mask": torch.tensor([1, 1, 1, 0, 0, 0])}
    spec = PermutationSpec.from_axes({**AXES, "mask": ("P",)})
    replies = [made_up({**mask, "mask": mask["mask"].roll(by)}) for by in range(2)]
    found, _ = FedRebasin(spec=spec).aggregate_train(1, replies)
    assert found is not None
    assert found["mask"].numpy().sum() == 3


def test_evaluation_and_summary_by_hand():
    strategy = Aligned(FedAvg(), aligner=Identity())
    message = Mock(spec=Message)
    message.content = RecordDict({"metrics": MetricRecord({"num-examples": 2, "accuracy": 0.5})})
    message.has_error.side_effect = lambda: False
    assert strategy.aggregate_evaluate(1, [message, message])["accuracy"] == 0.5
    strategy.summary()
