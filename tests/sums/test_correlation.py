from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedrebasin import CalibrationError, Permutation, PermutationSpec, collect_sums
from fedrebasin.sums import ActivationCorrelation
from fedrebasin.watching import unit_places
from tests.calibration.nets import AttentionNet, ConvNet, batches, examples, mlp, random_state

NETS = {"conv": (ConvNet(), (2, 6, 6)), "attention": (AttentionNet(), (5, 8)), "mlp": (mlp(), (6,))}


def setting(name: str) -> tuple[nn.Module, dict[str, Tensor], tuple[Tensor, Tensor], PermutationSpec]:
    model, shape = NETS[name]
    data = examples(shape, 40, 2)
    return model, random_state(model, 1), data, PermutationSpec.trace(model, data[0][:2].float())


def test_an_mlp_by_hand() -> None:
    model, state, data, spec = setting("mlp")
    other = random_state(model, 5)
    places = unit_places(model, state, data, spec)
    assert {key.rpartition("@")[2] for key in places} == {"2.weight", "4.weight"}
    statistic = ActivationCorrelation(places, other)
    sums = collect_sums(statistic, model, state, batches(data, 9))
    statistic.validate(sums)
    found = statistic.finish(sums)
    for key in places:
        group, _, weight = key.rpartition("@")
        front = model[: int(weight[0])]
        own, reference = (
            torch.func.functional_call(front, {k: v for k, v in each.items() if k[0] < weight[0]}, (data[0],)).detach()
            for each in (state, other)
        )
        both = torch.corrcoef(torch.cat([reference, own], 1).T)[:12, 12:].nan_to_num()
        assert torch.allclose(found[group], both, atol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_units_go_with_themselves_wherever_they_are(name: str) -> None:
    model, state, data, spec = setting(name)
    places = unit_places(model, state, data, spec)
    leaves = {group for group in spec.groups if not spec.children(group)}
    # What reads the queries' and keys' features is no product with a weight.
    assert {key.rpartition("@")[0] for key in places} <= leaves
    assert len(places) == len(leaves) or name == "attention"
    permutation = Permutation.random(spec, torch.Generator().manual_seed(3))
    statistic = ActivationCorrelation(places, state)
    sums = collect_sums(statistic, model, permutation.apply(state), batches(data, 16))
    statistic.validate(sums)
    for group, correlation in statistic.finish(sums).items():
        order = permutation[group]
        if (parent := spec.groups[group].parent) is not None:
            order = (permutation[parent][:, None] * order.shape[-1] + order).flatten()
        matched = correlation[order, torch.arange(len(order))]
        varies = correlation.abs().amax(0) > 0
        assert torch.allclose(matched[varies], torch.ones_like(matched[varies]), atol=1e-6), group


def test_absurd_sums_are_refused() -> None:
    model, state, data, spec = setting("mlp")
    statistic = ActivationCorrelation(unit_places(model, state, data, spec), random_state(model, 4))
    sums = collect_sums(statistic, model, state, [data])
    key = next(key for key in sums if key.endswith("cross"))
    with pytest.raises(CalibrationError, match="correlation above 1"):
        statistic.validate({**sums, key: sums[key] * 1e3})
    with pytest.raises(CalibrationError, match="is missing"):
        statistic.validate({each: tensor for each, tensor in sums.items() if each != key})
    with pytest.raises(CalibrationError, match="no examples"):
        statistic.finish({})
