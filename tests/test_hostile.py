"""No foreign exception leaves a public function: whatever it is given, there is a result, or an error in one line.

Every public function that takes models, state dicts or batches has a row in ``CALLS``; every odd thing that it may be
given has one in ``STATES``, ``BATCHES`` or ``MODELS``. Nothing is said here about the results.
"""

import importlib
import inspect
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fedrebasin
from fedrebasin.cli import main
from fedrebasin.files.checkpoints import load_checkpoint, save_checkpoint
from fedrebasin.merging.in_pieces import MeanInPieces


class Names:
    """All public names, wherever their home is."""

    def __init__(self):
        self.homes = {**fedrebasin._HOMES, **fedrebasin._FORMER_HOMES}

    def __getattr__(self, name):
        return getattr(importlib.import_module(self.homes[name]), name)


fr = Names()


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    ).eval()  # fmt: skip


AXES = {
    "0.weight": ("P", None), "0.bias": ("P",), "1.weight": ("P",), "1.bias": ("P",), "1.running_mean": ("P",),
    "1.running_var": ("P",), "3.weight": ("Q", "P"), "3.bias": ("Q",), "5.weight": (None, "Q"), "5.bias": (None,),
}  # fmt: skip
SPEC = fr.PermutationSpec.from_axes(AXES, like=net().state_dict())
PERMUTATION = fr.Permutation.random(SPEC, torch.Generator().manual_seed(1))


def random_state(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(tensor.shape, generator=generator) - 0.3 * ("var" not in key)
        if tensor.is_floating_point()
        else tensor.clone()
        for key, tensor in net().state_dict().items()
    }


def examples(*sizes):
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(size, 5, generator=generator), torch.arange(size) % 3) for size in sizes]


@dataclass(frozen=True)
class Given:
    model: nn.Module
    a: dict
    b: dict
    batches: object

    @property
    def batch(self):
        return next(iter(self.batches), None) if isinstance(self.batches, list) else self.batches


def generator():
    return torch.Generator().manual_seed(2)


def sums_of(statistic):
    return lambda g: statistic.finish(fr.collect_sums(statistic, g.model, g.a, g.batches))


def grams(g):
    return fr.GramMatrices().finish(fr.collect_sums(fr.GramMatrices(), g.model, g.a, g.batches))


def moments(g):
    statistic = fr.PreActivationMoments(("3.weight",))
    return statistic.finish(fr.collect_sums(statistic, g.model, g.a, g.batches))


def logits(g):
    return fr.logits_of(g.model, g.a, g.batches)


def head_sums(g):
    return fr.collect_sums(fr.HeadSums("5.weight"), g.model, g.a, g.batches)


def layer_sums(g):
    return fr.collect_sums(fr.LayerRegression("3.weight", g.b), g.model, g.a, g.batches)


def correlation(g):
    places = fr.unit_places(g.model, g.a, g.batch, SPEC)
    statistic = fr.ActivationCorrelation(places, g.b)
    return statistic.finish(fr.collect_sums(statistic, g.model, g.a, g.batches))


def files(g, folder):
    path = save_checkpoint(folder / "x.safetensors", g.a)
    return dict(load_checkpoint(path).state)


def pieces(g):
    mean = MeanInPieces([g.a, g.b], [None, PERMUTATION])
    return {key: list(mean(key)) for key in g.a}


ASCENT = fr.WeightMatching(method="coordinate")
CALLS = {
    "AlignTo": lambda g: fr.AlignTo(ASCENT)(SPEC, [g.a, g.b]),
    "AlignTo(0)": lambda g: fr.AlignTo(ASCENT, reference=0)(SPEC, [g.a, g.b]),
    "Aligner": lambda g: fr.AlignTo(ASCENT, reference=g.a)(SPEC, iter([g.b])),
    "MergeMany": lambda g: fr.MergeMany(max_rounds=2)(SPEC, [g.a, g.b, g.a]),
    "CycleConsistent": lambda g: fr.CycleConsistent(max_steps=3, max_rounds=2)(SPEC, [g.a, g.b]),
    "Identity": lambda g: fr.Identity()(SPEC, [g.a, g.b]),
    "WeightMatching": lambda g: fr.WeightMatching()(SPEC, reference=g.a, candidate=g.b),
    "Matcher": lambda g: ASCENT(SPEC, reference=g.b, candidate=g.a),
    "AlreadyAligned": lambda g: fr.AlreadyAligned(ASCENT)(SPEC, reference=g.a, candidate=g.b),
    "ActivationMatching": lambda g: fr.ActivationMatching(g.model, g.batches)(SPEC, reference=g.a, candidate=g.b),
    "StraightThrough": lambda g: fr.StraightThrough(g.model, g.batches, 1)(SPEC, reference=g.a, candidate=g.b),
    "match_relations": lambda g: fr.match_relations(SPEC, correlation(g)),
    "Permutation": lambda g: PERMUTATION.apply(g.a),
    "PermutationSpec": lambda g: SPEC.bind(g.a),
    "from_axes": lambda g: fr.PermutationSpec.from_axes(AXES, like=g.a),
    "trace": lambda g: fr.trace(g.model, g.batch[0] if isinstance(g.batch, tuple) else g.batch),
    "check": lambda g: fr.check(SPEC, g.model, g.batch[0] if isinstance(g.batch, tuple) else g.batch),
    "medoid": lambda g: fr.medoid(SPEC, [g.a, g.b, g.a]),
    "cosine": lambda g: fr.cosine(SPEC, g.a, g.b),
    "average": lambda g: fr.average([g.a, g.b], [0.3, 0.7]),
    "MeanInPieces": pieces,
    "started_from": lambda g: fr.started_from(SPEC, g.a, [g.b]),
    "interpolate": lambda g: [fr.interpolate(g.a, g.b, 0.5, way) for way in ("linear", "spherical")],
    "collect_sums": lambda g: [sums_of(s)(g) for s in (fr.TemperatureCurve(), fr.Reliability())],
    "PathEvaluation": sums_of(fr.PathEvaluation(random_state(3))),
    "HalfwayConnectivity": sums_of(fr.HalfwayConnectivity(random_state(3))),
    "BatchNormMoments": lambda g: [sums_of(fr.BatchNormMoments(how))(g) for how in ("batch", "state")],
    "ActivationCorrelation": correlation,
    "unit_places": lambda g: fr.unit_places(g.model, g.a, g.batch, SPEC),
    "affine_weights": lambda g: fr.affine_weights(g.model, g.a, g.batch),
    "head_weight": lambda g: fr.head_weight(g.model, g.a, g.batch),
    "evaluate": lambda g: fr.evaluate(g.model, g.a, g.batches),
    "logits_of": logits,
    "ensemble_logits": lambda g: fr.ensemble_logits([logits(g)[0]] * 2),
    "ensemble_log_probabilities": lambda g: fr.ensemble_log_probabilities([logits(g)[0]] * 2),
    "fit_temperature": lambda g: fr.fit_temperature(*logits(g)),
    "expected_calibration_error": lambda g: fr.expected_calibration_error(*logits(g)),
    "reliability_bins": lambda g: fr.reliability_bins(*logits(g)),
    "fold_temperature": lambda g: [fr.fold_temperature(g.a, 2.0, head) for head in ("5.weight", SPEC)],
    "recalibrate_batch_norm": lambda g: fr.recalibrate_batch_norm(g.model, g.a, g.batches, None),
    "recalibrate once": lambda g: fr.recalibrate_batch_norm(g.model, g.a, g.batches),
    "with_moments": lambda g: fr.with_moments(g.a, {"1": fr.Moments(1.0, torch.zeros(8), torch.ones(8))}),
    "repair": lambda g: fr.repair(g.model, g.a, [g.a, g.b], g.batches, SPEC, passes=2),
    "repairable_weights": lambda g: fr.repairable_weights(g.model, g.a, g.batch, SPEC),
    "fold_correction": lambda g: fr.fold_correction(g.a, "3.weight", *[moments(g)["3.weight"]] * 2),
    "permute_moments": lambda g: fr.permute_moments(PERMUTATION, g.a, moments(g)),
    "permute_gram": lambda g: fr.permute_gram(PERMUTATION, g.a, grams(g)),
    "regression_mean": lambda g: fr.regression_mean([g.a, g.b], [grams(g)] * 2, g.a),
    "ridge_head": lambda g: fr.ridge_head(g.a, "5.weight", [head_sums(g)]),
    "regressed_layer": lambda g: fr.regressed_layer(g.a, "3.weight", layer_sums(g)),
    "sequential_regression": lambda g: fr.sequential_regression(g.model, [g.a, g.b], [g.batches] * 2, g.a),
    "layers_of": lambda g: [fr.layers_of(g.model), fr.layers_of(g.model, SPEC)],
    "activation_spectra": lambda g: fr.activation_spectra(g.model, g.a, g.batches),
    "weight_spectra": lambda g: fr.weight_spectra(g.model, g.a),
    "unit_activity": lambda g: fr.unit_activity(g.model, g.a, g.batches),
    "active_overlap": lambda g: fr.active_overlap(g.model, g.a, g.b, g.batches),
    "commutativity": lambda g: fr.commutativity(g.model, g.a, g.b, g.batches),
    "commutativity_objective": lambda g: fr.commutativity_objective(g.model, g.a, g.b, g.batches, PERMUTATION),
    "compare_matchers": lambda g: fr.compare_matchers(g.model, SPEC, g.a, g.b, g.batches, {"weights": ASCENT}),
    "feature_connectivity": lambda g: fr.feature_connectivity(g.model, g.a, g.b, g.batches),
    "flatness": lambda g: fr.flatness(g.model, g.a, g.b, g.batches, generator=generator()),
    "instability": lambda g: fr.instability(g.model, [g.a], lambda state, *_: state, g.batches, points=3),
    "lemma_1": lambda g: fr.lemma_1(g.model, g.a, g.b, g.batches),
    "loss_barrier": lambda g: fr.loss_barrier(
        g.model, g.a, g.b, g.batches, 3, recalibrate=g.batches, calibrate=g.batches
    ),
    "loss_plane": lambda g: fr.loss_plane(g.model, g.a, g.b, random_state(9), g.batches, 2),
    "partial_barriers": lambda g: fr.partial_barriers(g.model, PERMUTATION, g.a, g.b, g.batches, points=2),
    "random_permutation_barriers": lambda g: fr.random_permutation_barriers(
        g.model, SPEC, g.a, g.b, g.batches, 1, generator=generator()
    ),
    "reciprocal_orthogonality": lambda g: fr.reciprocal_orthogonality(g.model, g.a, g.b, g.batches),
    "simultaneous_connectivity": lambda g: fr.simultaneous_connectivity(
        g.model, [g.a], [g.b], PERMUTATION, g.batches, 2
    ),
    "strong_connectivity": lambda g: fr.strong_connectivity(
        g.model, SPEC, [g.a, g.b, g.a], g.batches, ASCENT, points=2
    ),
    "weak_connectivity": lambda g: fr.weak_connectivity(g.model, SPEC, [g.a, g.b], g.batches, ASCENT, points=2),
    "weak_additivity": lambda g: fr.weak_additivity(g.model, g.a, g.b, g.batches),
    "stitching": lambda g: fr.stitching(g.model, g.a, g.b, g.batches),
    "dense_mask": lambda g: fr.dense_mask(g.a),
    "apply_mask": lambda g: fr.apply_mask(g.a, fr.dense_mask(net().state_dict())),
    "transport_mask": lambda g: fr.transport_mask(PERMUTATION, fr.dense_mask(g.a), g.a),
    "one_shot_pruning": lambda g: fr.one_shot_pruning(lambda state, mask: state, g.a, g.b, 0.5),
    "iterative_pruning": lambda g: fr.iterative_pruning(lambda state, mask: state, g.a, 2),
    "stable_rank": lambda g: fr.stable_rank(g.a["3.weight"]) if "3.weight" in g.a else None,
    "mode_of": lambda g: fr.mode_of(g.model, True).__enter__(),
}


def typed(dtype):
    return lambda state: {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}


def times(factor):
    return lambda state: {k: t * factor if t.is_floating_point() else t for k, t in state.items()}


def with_entry(key, value):
    return lambda state: {**state, key: value(state.get(key))}


def without(key):
    return lambda state: {k: t for k, t in state.items() if k != key}


def poisoned(value):
    def poison(tensor):
        tensor = tensor.clone()
        tensor[0] = value
        return tensor

    return with_entry("3.weight", poison)


#: What becomes of each model; a row with two makes the second one of the first model only.
STATES = {
    **{str(dtype): typed(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.complex64)},
    **{str(dtype): typed(dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool)},
    "meta": lambda state: {k: t.to("meta") for k, t in state.items()},
    "1e30": times(1e30),
    "1e-30": times(1e-30),
    "1e-45": times(1e-45),
    "zeros": times(0.0),
    "nan": poisoned(torch.nan),
    "inf": poisoned(torch.inf),
    "empty": lambda state: {},
    "a key less": without("3.weight"),
    "a buffer less": without("1.running_var"),
    "a counter less": without("1.num_batches_tracked"),
    "a key more": with_entry("more", lambda _: torch.ones(2)),
    "a mask more": with_entry("more", lambda _: torch.tensor([True, False])),
    "another shape": with_entry("3.weight", lambda _: torch.ones(7, 8)),
    "another dimension": with_entry("3.weight", lambda _: torch.ones(6, 8, 1)),
    "a scalar": with_entry("3.weight", lambda _: torch.tensor(1.0)),
    "text": with_entry("3.weight", lambda _: "text"),
    "none": with_entry("3.weight", lambda _: None),
    "numpy": with_entry("3.weight", lambda t: t.numpy()),
    "lazy": with_entry("3.weight", lambda _: nn.LazyLinear(3).weight),
    "sparse": with_entry("3.weight", lambda t: t.to_sparse()),
    "negative zero bits": with_entry("3.weight", lambda t: -0.0 * t),
    "transposed": with_entry("3.weight", lambda t: t.T.contiguous().T),
    "conjugate": with_entry("3.weight", lambda t: torch.complex(t, t).conj()),
    "expanded": with_entry("3.bias", lambda t: t[:1].expand(6)),
    "of a graph": with_entry("3.weight", lambda t: t.requires_grad_() * 2),
}
ALONE = {
    name: STATES[name]
    for name in (
        "torch.float16", "torch.complex64", "torch.float8_e4m3fn", "torch.int8", "1e30", "nan", "empty", "a key less",
        "a key more", "another shape", "a scalar", "lazy", "meta", "sparse", "text", "a buffer less", "zeros",
    )
}  # fmt: skip

BATCHES = {
    "none at all": list,
    "empty ones": lambda: examples(0, 0),
    "one empty": lambda: examples(4, 0),
    "a last one of one": lambda: examples(4, 4, 1),
    "one example": lambda: examples(1),
    "nan": lambda: [(x * torch.nan, y) for x, y in examples(4)],
    "inf": lambda: [(x * torch.inf, y) for x, y in examples(4)],
    "1e30": lambda: [(x * 1e30, y) for x, y in examples(4, 4)],
    "integers": lambda: [(x.long(), y) for x, y in examples(4)],
    "float64": lambda: [(x.double(), y) for x, y in examples(4)],
    "float16": lambda: [(x.half(), y) for x, y in examples(4)],
    "complex": lambda: [(x + 0j, y) for x, y in examples(4)],
    "too wide": lambda: [(torch.ones(4, 9), y) for _, y in examples(4)],
    "a scalar": lambda: [(torch.tensor(1.0), torch.tensor(1))],
    "meta": lambda: [(x.to("meta"), y) for x, y in examples(4)],
    "inputs only": lambda: [x for x, _ in examples(4, 4)],
    "lists of one": lambda: [[x] for x, _ in examples(4)],
    "three of a kind": lambda: [(x, y, y) for x, y in examples(4)],
    "dicts": lambda: [{"input": x} for x, _ in examples(4)],
    "dicts with labels": lambda: [({"input": x}, y) for x, y in examples(4)],
    "dicts of strange names": lambda: [{"pixel_values": x, "labels": y} for x, y in examples(4)],
    "empty dicts": lambda: [{}],
    "labels one short": lambda: [(x, y[1:]) for x, y in examples(4)],
    "labels out of range": lambda: [(x, y + 9) for x, y in examples(4)],
    "labels ignored": lambda: [(x, y * 0 - 100) for x, y in examples(4)],
    "float labels": lambda: [(x, y.float()) for x, y in examples(4)],
    "one-hot labels": lambda: [(x, nn.functional.one_hot(y, 3)) for x, y in examples(4)],
    "labels as a list": lambda: [(x, y.tolist()) for x, y in examples(4)],
    "none": lambda: [None],
    "text": lambda: ["text"],
    "numpy": lambda: [(x.numpy(), y.numpy()) for x, y in examples(4)],
    "an iterator": lambda: iter(examples(4, 4)),
    "a tensor": lambda: torch.ones(4, 5),
    "a dict": lambda: {"input": torch.ones(4, 5)},
    "a pair": lambda: examples(4)[0],
    "nothing": lambda: None,
}


class Around(nn.Sequential):
    """The net, with something done to what it returns."""

    def __init__(self, change):
        super().__init__(*net())
        self.change = change

    def forward(self, input):  # noqa: A002
        return self.change(super().forward(input))


def refuse(_):
    raise KeyError("several\nlines\nof trouble")


class Branching(nn.Sequential):
    def forward(self, input):  # noqa: A002
        return super().forward(input if float(input.sum()) > 0 else -input)


def in_graph(x):
    return x * x.detach().numpy().sum()


MODELS = {
    "a tuple": lambda: Around(lambda x: (x, x)),
    "a dict": lambda: Around(lambda x: {"logits": x}),
    "none": lambda: Around(lambda _: None),
    "a scalar": lambda: Around(lambda x: x.sum()),
    "one row for all": lambda: Around(lambda x: x.sum(0)),
    "text": lambda: Around(lambda _: "text"),
    "no classes": lambda: Around(lambda x: x[:, :0]),
    "integers": lambda: Around(lambda x: x.long()),
    "nan": lambda: Around(lambda x: x * torch.nan),
    "raises": lambda: Around(refuse),
    "leaves the graph": lambda: Around(in_graph),
    "branches on data": lambda: Branching(*net()),
    "training": lambda: net().train(),
    "dropout": lambda: nn.Sequential(*net(), nn.Dropout()).train(),
    "no parameters": lambda: nn.Sequential(nn.Flatten()),
    "no forward": nn.Module,
    "other keys": lambda: nn.Sequential(nn.Linear(5, 3)),
    "more keys": lambda: nn.Sequential(*net(), nn.Linear(3, 3)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(8), *list(net())[1:]),
    "half": lambda: net().half(),
    "meta": lambda: net().to("meta"),
    "frozen": lambda: net().requires_grad_(False),
}


def given_state(name):
    return Given(net(), STATES[name](random_state(1)), STATES[name](random_state(2)), examples(4, 4))


def given_one_state(name):
    return Given(net(), random_state(1), STATES[name](random_state(2)), examples(4, 4))


def given_batches(name):
    return Given(net(), random_state(1), random_state(2), BATCHES[name]())


def given_model(name):
    return Given(MODELS[name](), random_state(1), random_state(2), examples(4, 4))


GOOD = Given(net(), random_state(1), random_state(2), examples(4, 4))
ROWS = [
    *[("state", name, given_state) for name in STATES],
    *[("one state", name, given_one_state) for name in ALONE],
    *[("batches", name, given_batches) for name in BATCHES],
    *[("model", name, given_model) for name in MODELS],
]


class Watched:
    """What is given, and which parts of it were asked for."""

    def __init__(self, given):
        self._given, self.asked = given, set()

    def __getattr__(self, part):
        self.asked.add(part)
        return getattr(self._given, part)


def rows_of(call):
    """The rows that can make a difference to a call: those of what it looks at."""
    watched = Watched(GOOD)
    call(watched)
    parts = {"state": {"a", "b"}, "one state": {"b"}, "batches": {"batch", "batches"}, "model": {"model"}}
    return [row for row in ROWS if watched.asked & parts[row[0]]]


def foreign(call, given):
    """What left the call that should not have: the error, or nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(given)
        except fr.RebasinError as error:
            return "" if "\n" not in str(error) else f"several lines: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("call", CALLS)
def test_a_result_or_one_line(call):
    found = {f"{kind} {name}": foreign(CALLS[call], make(name)) for kind, name, make in rows_of(CALLS[call])}
    assert not {row: wrong for row, wrong in found.items() if wrong}


def test_what_is_given_works_where_nothing_is_odd(tmp_path):
    for call in CALLS.values():
        call(GOOD)
    files(GOOD, tmp_path)


@pytest.mark.parametrize("name", STATES)
def test_a_file_or_one_line(tmp_path, name):
    assert not foreign(lambda given: files(given, tmp_path), given_state(name))


@pytest.mark.parametrize("method", ["weight-matching", "average"])
@pytest.mark.parametrize("name", STATES)
def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys, name, method):
    monkeypatch.chdir(tmp_path)
    SPEC.save("spec.json")
    for file, seed in (("a.pt", 1), ("b.pt", 2)):
        torch.save(STATES[name](random_state(seed)), file)
    code = main(["merge", "a.pt", "b.pt", "-o", "m.safetensors", "--spec", "spec.json", "--method", method])
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 0 or (code == 2 and last.startswith("fedrebasin: "))


#: Public, and takes neither models nor states nor batches.
ELSEWHERE = {"add_sums", "ahead", "barrier_value", "choose", "coverage_gaps", "fixed_points", "interpolated_moments"}
ELSEWHERE |= {"merge_files", "partial_permutation", "partial_permutations", "register_rule"}


def test_every_public_function_has_its_row():
    functions = {name for name in fr.homes if inspect.isfunction(getattr(fr, name))}
    assert functions == (functions & set(CALLS)) | ELSEWHERE
