"""A reference that turns out to be an outlier has no part in the order of the others: they are aligned again."""

from unittest.mock import Mock, patch

import pytest
import torch
from fedrebasin.strategies.aggregate import ReplyAlignment
from fedrebasin.strategies.aggregate.settling import without_outliers
from fedrebasin.strategies.replies import Reply

from benchmarks.support.attacks import turned
from benchmarks.support.federation import Clients, HandedOn, asked, positions, remembering
from fedrebasin import Alignment, AlignTo, History, Merge, Permutation, PermutationSpec, WeightMatching
from fedrebasin.models import MLP
from fedrebasin.strategies import Aligned, Frames, to_state

HONEST = 10


@pytest.fixture(params=range(3))
def sent(request):
    """Noisy copies of one model, each in an order of its own, and one more with a turned head, the reference."""
    generator = torch.Generator().manual_seed(request.param)
    model = MLP(64, width=32, depth=2)
    spec = PermutationSpec.trace(model, torch.randn(2, 64, generator=generator))

    def drawn():
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        return {key: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for key, shape in shapes.items()}

    planted = drawn()
    noisy = [{key: planted[key] + 0.3 * noise for key, noise in drawn().items()} for _ in range(HONEST + 1)]
    *honest, other = [Permutation.random(spec, generator).apply(state) for state in noisy]
    poisoned = turned(other)
    return Clients(honest, [poisoned], poisoned, model, spec, (torch.empty(0), torch.empty(0)))


def test_the_order_of_the_rest_is_their_own(sent):
    """What is handed on is what would be, had only these been sent."""

    def handed_on(states):
        inner, matcher = HandedOn(), WeightMatching(method="coordinate")
        strategy = Aligned(inner, spec=sent.spec, aligner=AlignTo(matcher, reference=0))
        strategy.aggregate_train(1, asked(sent, strategy, states))
        return inner.messages

    states = [*sent.dishonest, *sent.honest]
    with remembering():
        messages = handed_on(states)
        left = sorted(positions(messages))
        alone = handed_on([states[position] for position in left])
    assert 0 not in left
    assert len(left) == len(alone) >= HONEST - 1
    for found, expected in zip(messages, alone, strict=True):
        found, expected = (to_state(each.content.array_records["arrays"]) for each in (found, expected))
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


@pytest.fixture
def first_elected():
    """Elections that the first of the models wins that stand for them."""
    with patch("fedrebasin.merging.align_to.medoid", lambda spec, states: 0):
        yield


def test_nobody_is_turned_towards_an_outlier(sent, first_elected):
    """A mean takes all replies, and takes them in an order that is not an outlier's."""
    matcher, inner = WeightMatching(method="coordinate"), HandedOn(robust=False)
    strategy = Aligned(inner, spec=sent.spec, aligner=AlignTo(matcher, reference="medoid"), frame=(frames := Frames()))
    with remembering():
        strategy.aggregate_train(1, asked(sent, strategy, [*sent.dishonest, *sent.honest]))
        (reference,) = [node - 2 for node, found in frames.by_node.items() if found.is_identity]
        assert reference >= 0, "an outlier"
        expected = AlignTo(matcher, reference=reference)(sent.spec, sent.honest)
    models = {each.metadata.src_node_id: to_state(each.content.array_records["arrays"]) for each in inner.messages}
    assert len(models) == HONEST + 1
    for node, (state, alignment) in enumerate(zip(expected.states, expected.alignments, strict=True), start=2):
        assert all(torch.equal(tensor, models[node][key]) for key, tensor in state.items())
        assert frames.by_node[node] == alignment.permutation


def test_who_is_set_aside_keeps_no_permutation(sent, first_elected):
    inner, frames = HandedOn(), Frames()
    aligner = AlignTo(WeightMatching(method="coordinate"), reference="medoid")
    strategy = Aligned(inner, spec=sent.spec, aligner=aligner, frame=frames)
    with remembering():
        strategy.aggregate_train(1, asked(sent, strategy, [*sent.dishonest, *sent.honest]))
    assert frames.by_node.keys() == {position + 1 for position in positions(inner.messages)}
    assert 1 not in frames.by_node


def test_an_outlier_that_equals_the_reference_is_no_reason_to_align_twice_more(sent):
    """A node that is barred is none: what it sent may lie along the reference all the same."""
    honest = sent.honest[:6]
    replies = [Reply(None, at, state, 1.0) for at, state in enumerate((*honest, honest[0]))]
    identity = Permutation.identity(sent.spec.bind(honest[0]))
    alignments = [Alignment(identity, float(at in (0, 6)), History((), 0.0, True, "")) for at in range(7)]
    merge = Merge(tuple(reply.state for reply in replies), tuple(alignments), {}, alignments[0].history)
    again = Mock(return_value=(replies, merge))
    alignment = ReplyAlignment(sent.spec, AlignTo(), None, torch.device("cpu"))
    with patch("fedrebasin.strategies.aggregate.settling.outliers", return_value={6: "too long"}):
        without_outliers(replies, merge, alignment, False, Mock(), again)
    again.assert_called_once_with(replies, frozenset({6}))
