"""Files of permutation specs: read as one that only moves units of models that it fits, or refused."""

import json

import torch
from torch import nn

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.models import MLP, resnet20
from tests.fuzzing.engine import Target, assert_nothing_found
from tests.fuzzing.mutating import mutate_document
from tests.strategies.helpers import AXES, make_state


def nested():
    """A spec with groups inside groups, and layouts."""
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=6, batch_first=True).eval()
    return PermutationSpec.trace(model, torch.zeros(2, 3, 8), check=False), model.state_dict()


def traced(model, shape):
    return PermutationSpec.trace(model, torch.zeros(2, *shape), check=False), model.state_dict()


WITH_MODELS = [
    nested(),
    traced(MLP(6, width=4), (6,)),
    traced(resnet20((1, 8, 8), 3, 1 / 16).eval(), (1, 8, 8)),
    (PermutationSpec.from_axes(AXES), make_state(0)),
]


def written(spec, path):
    spec.save(path)
    return path.read_bytes()


def check_in(folder):
    def check(data):
        path = folder / "spec.json"
        path.write_bytes(data)
        spec = PermutationSpec.load(path)
        str(spec)
        spec.save(path)
        assert PermutationSpec.load(path) == spec
        model = next((state for _, state in WITH_MODELS if set(spec.shapes) <= set(state)), make_state(0))
        bound = spec.bind(model)
        assert 0.0 <= bound.coverage <= 1.0
        assert bound.log10_symmetries >= 0.0
        member = Permutation.random(bound, torch.Generator().manual_seed(0))
        moved = member.apply(model)
        back = member.inverse().apply(moved)
        for key, tensor in model.items():
            assert torch.equal(moved[key].flatten().sort().values, tensor.flatten().sort().values), "units were lost"
            assert torch.equal(back[key], tensor)

    return check


def seeds_in(folder):
    def seeds():
        specs = [spec for spec, _ in WITH_MODELS] + [spec.bind(state) for spec, state in WITH_MODELS[-1:]]
        specs.append(WITH_MODELS[1][0].freeze(list(WITH_MODELS[1][0].groups)[:1]))
        return [written(spec, folder / "seed.json") for spec in specs]

    return seeds


def target_in(folder):
    return Target("specs", seeds_in(folder), check_in(folder), mutate_document)


def test_a_file_is_a_spec_or_refused(tmp_path):
    assert_nothing_found(target_in(tmp_path), cases=400)


def test_what_is_kept_is_json_or_meant_not_to_be(tmp_path):
    for data in target_in(tmp_path).seeds():
        json.loads(data)
