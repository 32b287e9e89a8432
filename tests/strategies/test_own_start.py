"""An inner strategy's own ``start`` is run, whatever it looks like, and its rounds go through the wrapper."""

import copy
import functools
import pickle
import threading

import pytest
import torch
from fedrebasin.strategies.driving import HOOKS, Call
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    Result,
)

from fedrebasin import Identity, Permutation, PermutationSpec, RebasinError
from fedrebasin.simulations import InlineGrid
from fedrebasin.strategies import Aligned, CheckpointError, FedRebasin
from tests.strategies.helpers import AXES, FromNothing, make_state

SPEC = PermutationSpec.from_axes(AXES)
CLIENTS = 3


def client_app():
    """Clients that add some noise and put their units into another order."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        generator = torch.Generator().manual_seed(context.node_config["partition-id"])
        state = message.content["arrays"].to_torch_state_dict()
        near = {k: t + 0.01 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
                for k, t in state.items()}  # fmt: skip
        moved = Permutation.random(SPEC.bind(state), generator).apply(near)
        metrics = MetricRecord({"num-examples": 10, "train-loss": 0.5})
        return Message(RecordDict({"arrays": ArrayRecord(dict(moved)), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "seen": 1.0})}), reply_to=message)

    return app


def begin(strategy, *args, **kwargs):
    return strategy.start(
        InlineGrid(client_app(), CLIENTS), ArrayRecord(make_state(5, integers=False)), *args, **kwargs
    )


def run_rounds(strategy, grid, arrays, rounds, evaluate_fn=None):
    """A loop of one's own."""
    result = Result()
    for number in range(1, rounds + 1):
        replies = grid.send_and_receive(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        new, metrics = strategy.aggregate_train(number, replies)
        arrays = result.arrays = arrays if new is None else new
        result.train_metrics_clientapp[number] = metrics
        replies = grid.send_and_receive(strategy.configure_evaluate(number, arrays, ConfigRecord(), grid))
        result.evaluate_metrics_clientapp[number] = strategy.aggregate_evaluate(number, replies)
        if evaluate_fn is not None:
            result.evaluate_metrics_serverapp[number] = evaluate_fn(number, arrays)
    return result


class Through(FedAvg):
    def start(self, grid, initial_arrays, num_rounds=2, **options):
        self.seen = [type(self).__name__, isinstance(self, Through)]
        result = super().start(grid, initial_arrays, num_rounds, **options)
        self.seen.append(len(result.train_metrics_clientapp))
        return result


class Anything(FedAvg):
    def start(self, *args, **kwargs):
        self.seen = [len(args), sorted(kwargs)]
        return super().start(*args, **kwargs)


class Loop(FedAdam):
    def start(self, grid, initial_arrays, num_rounds=2, evaluate_fn=None):
        self.summary()
        self.seen = [num_rounds]
        return run_rounds(self, grid, initial_arrays, num_rounds, evaluate_fn)


class Traced(Loop):
    @staticmethod
    def noted(start):
        @functools.wraps(start)
        def traced(self, *args, **kwargs):
            self.calls = getattr(self, "calls", 0) + 1
            return start(self, *args, **kwargs)

        return traced

    start = noted(Loop.start)


class Hooked(Through):
    """Hooks and private methods of its own, which call one another."""

    def configure_train(self, server_round, arrays, config, grid):
        self._count("configure_train")
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        self._count("aggregate_train")
        arrays, metrics = super().aggregate_train(server_round, replies)
        return arrays, MetricRecord({**metrics, "counted": self.rounds})

    @property
    def rounds(self):
        return self.counted.count("aggregate_train")

    def _count(self, what):
        self.counted = [*getattr(self, "counted", ()), what]


class Slotted(Loop):
    __slots__ = ("kept",)

    def start(self, grid, initial_arrays, num_rounds=2):
        self.kept = num_rounds
        return super().start(grid, initial_arrays, num_rounds)


class Private(DifferentialPrivacyServerSideFixedClipping):
    def start(self, *args, **kwargs):
        self.seen = ["private"]
        return super().start(*args, **kwargs)


def patched():
    strategy = FedAvg()

    def start(grid, initial_arrays, num_rounds=2):
        strategy.seen = ["patched"]
        return run_rounds(strategy, grid, initial_arrays, num_rounds)

    strategy.start = start
    return strategy


OWN = {
    "super": Through,
    "anything": Anything,
    "loop": Loop,
    "decorated": Traced,
    "hooks": Hooked,
    "slots": Slotted,
    "privacy": lambda: Private(FedAvg(), 0.0, 100.0, CLIENTS),
    "patched": patched,
}


def left_behind(strategy):
    """What a run left on a strategy: simple values only."""
    return {name: value for name, value in vars(strategy).items() if isinstance(value, int | float | str | list)}


def assert_same_arrays(a, b):
    for key, array in a.arrays.items():
        assert b.arrays[key].numpy().tolist() == array.numpy().astype(array.dtype).tolist(), key


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_with_nothing_aligned_the_wrapper_is_the_strategy(name, streaming):
    plain, wrapped = OWN[name](), OWN[name]()
    expected = begin(plain, num_rounds=2)
    result = begin(Aligned(wrapped, aligner=Identity(), streaming=streaming), num_rounds=2)
    assert left_behind(wrapped) == left_behind(plain)
    assert len(left_behind(wrapped)) > 0
    assert result.train_metrics_clientapp == expected.train_metrics_clientapp
    assert result.evaluate_metrics_clientapp == expected.evaluate_metrics_clientapp
    for key, array in expected.arrays.items():
        found, there = torch.tensor(result.arrays[key].numpy()), torch.tensor(array.numpy())
        assert torch.allclose(found.double(), there.double(), atol=1e-6), key


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_every_round_goes_through_the_alignment(name, streaming):
    inner = OWN[name]()
    kind = type(inner)
    result = begin(FedRebasin(inner, spec=SPEC, streaming=streaming), num_rounds=2)
    assert type(inner) is kind
    assert not set(HOOKS) & set(vars(inner))
    for number in (1, 2):
        assert result.train_metrics_clientapp[number]["rebasin-units-moved"] > 0
        assert result.train_metrics_clientapp[number]["rebasin-similarity"] > 0.9
        assert result.evaluate_metrics_clientapp[number]["seen"] == 1.0


def test_defaults_are_the_strategys_own_and_arguments_may_be_named_or_not():
    assert begin(Aligned(Through(), aligner=Identity())).train_metrics_clientapp.keys() == {1, 2}
    assert begin(Aligned(Through(), aligner=Identity()), 1).train_metrics_clientapp.keys() == {1}
    assert begin(Aligned(FedAvg(), aligner=Identity())).train_metrics_clientapp.keys() == {1, 2, 3}

    class Budgeted(FedAvg):
        def start(self, grid, initial_arrays, budget, *more, epsilon, **options):
            return budget, more, epsilon, sorted(options), super().start(grid, initial_arrays, num_rounds=budget)

    found = begin(Aligned(Budgeted(), aligner=Identity()), 1, "more", epsilon=0.5, other=1)
    assert found[:4] == (1, ("more",), 0.5, ["other"])
    with pytest.raises(TypeError, match="epsilon"):
        begin(Aligned(Budgeted(), aligner=Identity()), 1)
    with pytest.raises(TypeError, match="rounds"):
        begin(Aligned(FedAvg(), aligner=Identity()), rounds=1)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((3, 9.0, None, None, "f"), {}), ((), {"evaluate_fn": "f", "num_rounds": 3})]
)
@pytest.mark.parametrize("kind", [FedAvg, Anything, Through])
def test_an_argument_is_found_and_changed_where_it_was_given(kind, args, kwargs):
    if kind is Through and len(args) > 1:
        with pytest.raises(TypeError):
            Call(kind(), ("grid", "arrays", *args), kwargs)
        return
    call = Call(kind(), ("grid", "arrays", *args), kwargs)
    assert [call.get(name) for name in ("grid", "initial_arrays", "num_rounds", "evaluate_fn")] == [
        "grid",
        "arrays",
        3,
        "f",
    ]
    for name in ("grid", "num_rounds", "evaluate_fn"):
        call.put(name, f"new {name}")
    assert call.positional[0] == "new grid"
    assert len(call.positional) == 2 + len(args)
    assert [call.get(name) for name in ("num_rounds", "evaluate_fn")] == ["new num_rounds", "new evaluate_fn"]


def test_evaluate_fn_and_log_get_the_rounds_of_an_own_loop():
    logged, evaluated = [], []

    def evaluate(number, arrays):
        evaluated.append(number)
        return MetricRecord({"accuracy": 0.5})

    class Named(Loop):
        def start(self, *args, evaluate_fn):
            self.named = evaluate_fn.__name__
            return super().start(*args, evaluate_fn=evaluate_fn)

    strategy = Aligned(
        Named(), aligner=Identity(), log=lambda number, metrics: logged.append((number, sorted(metrics)))
    )
    begin(strategy, 2, evaluate_fn=evaluate)
    assert evaluated == [1, 2]
    assert strategy.named == "evaluate"
    names = ["evaluate/seen", "server/accuracy", "train/train-loss"]
    assert logged == [(1, names), (2, names)]


def test_a_strategy_in_its_own_start_is_itself():
    """Its copies, its attributes and what it is called are those that it would have without a wrapper."""
    found = {}

    class Curious(Loop):
        def start(self, *args, **kwargs):
            found["self"], found["vars"] = self, set(vars(self))
            found["names"] = type(self).__name__, type(self).__qualname__, type(self).__module__, type(self).__doc__
            found["class"] = self.__class__
            found["copies"] = copy.copy(self), copy.deepcopy(self)
            found["function"] = type(self).aggregate_train
            return super().start(*args, **kwargs)

    inner = Curious()
    before = set(vars(inner))
    begin(FedRebasin(inner, spec=SPEC))
    assert found["self"] is inner
    assert found["vars"] == before
    assert found["names"] == (Curious.__name__, Curious.__qualname__, Curious.__module__, Curious.__doc__)
    assert [type(one) for one in found["copies"]] == [Curious, Curious]
    assert found["class"] is Curious
    assert found["function"] is FedAdam.aggregate_train


class Pickled(Through):
    def aggregate_evaluate(self, server_round, replies):
        self.pickled = pickle.dumps(self)
        return super().aggregate_evaluate(server_round, replies)


def test_a_strategy_may_write_itself_down_in_its_rounds():
    inner = Pickled()
    begin(Aligned(inner, aligner=Identity()))
    again = pickle.loads(inner.pickled)
    assert type(again) is Pickled
    assert begin(again).train_metrics_clientapp.keys() == {1, 2}


def test_whatever_an_own_start_raises_comes_out_and_it_is_itself_again():
    class Failing(FedAvg):
        def start(self, *args, **kwargs):
            self.configure_train(1, args[1], ConfigRecord(), args[0])
            raise KeyError("tracker")

    inner = Failing()
    strategy = FedRebasin(inner, spec=SPEC)
    for _ in range(2):
        with pytest.raises(KeyError, match="tracker"):
            begin(strategy)
        assert type(inner) is Failing
        assert not strategy._run.started


def test_hooks_of_other_threads_lead_to_the_wrapper_too():
    class Threaded(FedAvg):
        def aggregate_train(self, server_round, replies):
            self.meanwhile = []
            thread = threading.Thread(target=lambda: self.meanwhile.append(self.configure_evaluate))
            thread.start()
            thread.join()
            self.own = self.configure_evaluate
            return super().aggregate_train(server_round, replies)

        def start(self, grid, initial_arrays):
            return run_rounds(self, grid, initial_arrays, 1)

    inner = Threaded()
    begin(FedRebasin(inner, spec=SPEC))
    assert inner.own.__self__ is inner  # the wrapper asked, and so it is its own
    (other,) = inner.meanwhile
    assert getattr(other, "__self__", None) is not inner


def test_rounds_that_never_came_by_are_an_error():
    class Past(FedAvg):
        def start(self, grid, initial_arrays, num_rounds=1):
            result = Result()
            replies = grid.send_and_receive(super().configure_train(1, initial_arrays, ConfigRecord(), grid))
            result.arrays, _ = super().aggregate_train(1, replies)
            return result

    with pytest.raises(RebasinError, match=r"Past.start has trained without FedRebasin: .*self.aggregate_train"):
        begin(FedRebasin(Past(), spec=SPEC))


def test_a_class_that_cannot_be_derived_from_is_refused_before_the_first_round():
    class Closed(FedAvg):
        def __init_subclass__(cls):
            raise TypeError("nothing is derived from Closed")

        def start(self, *args, **kwargs):
            raise AssertionError

    with pytest.raises(RebasinError, match=r"Closed has a start of its own that cannot be driven \(.*evaluate_fn="):
        begin(FedRebasin(Closed(), spec=SPEC))


def test_replies_that_a_loop_has_read_itself_are_not_taken_for_none():
    class Reading(FedAvg):
        def start(self, grid, initial_arrays):
            replies = grid.send_and_receive(self.configure_train(1, initial_arrays, ConfigRecord(), grid))
            self.examples = [reply.content["metrics"]["num-examples"] for reply in replies]
            return self.aggregate_train(1, replies)

    strategy = FedRebasin(Reading(), spec=SPEC)
    _, metrics = begin(strategy)
    assert strategy.examples == [10, 10, 10]
    assert metrics["rebasin-replies-set-aside"] == 0
    with pytest.raises(RebasinError, match=r"read before aggregate_train.*streaming=True"):
        begin(FedRebasin(Reading(), spec=SPEC, streaming=True))


def test_an_own_start_is_resumed_only_if_it_says_so(tmp_path):
    with pytest.raises(RebasinError, match=r"resume=True: Loop has a start of its own.*resumable = True"):
        Aligned(Loop(), aligner=Identity(), checkpoint=tmp_path, resume=True)

    class Resumable(Loop):
        resumable = True

    whole = begin(Aligned(Resumable(), aligner=Identity()), 4)
    first = Aligned(Resumable(), aligner=Identity(), checkpoint=tmp_path, resume=True)
    begin(first, 2)
    inner = Resumable()
    result = begin(Aligned(inner, aligner=Identity(), checkpoint=tmp_path, resume=True), 4)
    assert inner.seen == [2]
    assert result.train_metrics_clientapp == whole.train_metrics_clientapp
    assert_same_arrays(whole, result)


def test_a_run_that_is_over_already_has_not_trained_without_the_wrapper(tmp_path):
    class Resumable(FedAvg):
        resumable = True

        def start(self, grid, initial_arrays, num_rounds=1):
            result = run_rounds(self, grid, initial_arrays, num_rounds)
            result.arrays = result.arrays or initial_arrays
            return result

    first, again = (begin(FedRebasin(Resumable(), spec=SPEC, checkpoint=tmp_path, resume=True)) for _ in range(2))
    assert_same_arrays(first, again)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_loop_may_have_its_model_from_elsewhere(checkpoint, tmp_path):
    class Loading(FedAvg):
        def start(self, grid, initial_arrays, rounds):
            arrays = ArrayRecord({key: torch.tensor(value) for key, value in initial_arrays.items()})
            return run_rounds(self, grid, arrays, rounds)

    strategy = FedRebasin(Loading(), spec=SPEC, checkpoint=tmp_path if checkpoint else None)
    values = {key: tensor.tolist() for key, tensor in make_state(5, integers=False).items()}
    result = strategy.start(InlineGrid(client_app(), CLIENTS), values, rounds=1)
    assert result.train_metrics_clientapp[1]["rebasin-units-moved"] > 0
    assert len(list(tmp_path.glob("round-*"))) == checkpoint
    if checkpoint:
        Loading.resumable = True
        with pytest.raises(CheckpointError, match="initial_arrays"):
            FedRebasin(Loading(), spec=SPEC, checkpoint=tmp_path, resume=True).start(None, values, rounds=1)


def test_a_second_start_of_an_own_loop_begins_anew():
    strategy = FedRebasin(Loop(), spec=SPEC)
    first, second = begin(strategy), begin(strategy)
    assert_same_arrays(first, second)


def test_inside_of_a_wrapper_of_flowers_it_is_the_wrappers_loop_that_runs_as_without_us():
    for wrap in (lambda strategy: strategy, lambda strategy: FedRebasin(strategy, spec=SPEC)):
        inner = Through()
        begin(wrap(DifferentialPrivacyServerSideFixedClipping(inner, 0.0, 1.0, CLIENTS)), 1)
        assert not hasattr(inner, "seen")


def test_a_class_derived_from_a_wrapper_may_have_a_loop_too():
    class Mine(FedRebasin):
        def start(self, grid, initial_arrays, num_rounds=2):
            self.summary()
            return run_rounds(self, grid, initial_arrays, num_rounds)

    result = begin(Mine(spec=SPEC))
    assert result.train_metrics_clientapp[2]["rebasin-units-moved"] > 0


def test_a_method_that_an_object_was_given_is_asked():
    def aggregate_train(server_round, replies):
        return None, MetricRecord({"replies": len(list(replies))})

    strategy = FedAvg()
    strategy.aggregate_train = aggregate_train
    result = begin(Aligned(strategy, aligner=Identity()), 1)
    assert result.train_metrics_clientapp[1] == {"replies": CLIENTS}


# Attributes


class Noting(FedAvg):
    def __init__(self):
        super().__init__()
        self.notes = []
        self._secret = 3
        self.device = "mine"

    @property
    def last(self):
        return self.notes[-1]

    def note(self, what):
        self.notes.append(what)


def test_attributes_and_methods_of_the_inner_strategy_are_reached():
    inner = Noting()
    strategy = Aligned(inner, aligner=Identity())
    strategy.note("a")
    assert strategy.notes is inner.notes
    assert strategy.last == "a"
    assert strategy._secret == 3
    strategy.fraction_train = 0.5
    assert inner.fraction_train == 0.5
    strategy.folder = "new"
    assert inner.folder == strategy.folder == "new"
    assert "folder" not in vars(strategy)


def test_settings_are_the_wrappers_and_stay_as_they_are():
    inner = Noting()
    strategy = Aligned(inner, aligner=Identity(), device="cpu")
    assert strategy.device == torch.device("cpu")
    assert inner.device == "mine"
    with pytest.raises(AttributeError, match="device is a setting of Aligned"):
        strategy.device = "cuda"
    with pytest.raises(AttributeError, match="nothing"):
        strategy.nothing  # noqa: B018
    with pytest.raises(AttributeError):
        strategy.beta = 2.0


def test_copies_and_pickles_are_whole():
    strategy = Aligned(Noting(), aligner=Identity())
    for again in (copy.copy(strategy), copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy))):
        assert again.notes == []
        assert begin(again, 1).train_metrics_clientapp.keys() == {1}
    assert not hasattr(Aligned.__new__(Aligned), "notes")


def test_another_strategy_that_is_no_flower_class_has_flowers_loop():
    class Bare(FromNothing):
        def aggregate_train(self, server_round, replies):
            return next(iter(replies)).content["arrays"], None

    assert_same_arrays(begin(Bare(), 1), begin(Aligned(Bare(), aligner=Identity()), 1))
