"""When probes run and how long: with a clock of our own."""

from types import SimpleNamespace

import pytest
import torch
from fedrebasin.strategies.probes.schedule import Schedule
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fedrebasin import RebasinError
from fedrebasin.analysis import stable_rank
from fedrebasin.strategies import SpectrumProbe


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("fedrebasin.strategies.probes.schedule.time", SimpleNamespace(perf_counter=made))
    return made


def work(clock, schedule, items, **how):
    """Takes as many seconds for each item as its first number says."""
    done = []
    for item in schedule.affordable(items, **how):
        clock.now += item[0]
        done.append(item)
    return done


@pytest.mark.parametrize(("seconds", "expected"), [(None, 9), (0.1, 1), (1.0, 1), (2.0, 2), (3.5, 3), (100.0, 9)])
def test_equal_items_run_while_the_next_one_ends_in_time(clock, seconds, expected):
    done = work(clock, Schedule(seconds=seconds), [(1.0,)] * 9)
    assert len(done) == expected
    assert seconds is None or expected == 1 or clock.now <= seconds


def test_a_large_item_is_not_started_after_small_ones(clock):
    items = [(1.0, 10.0), (1.0, 10.0), (5.0, 50.0), (1.0, 10.0)]
    assert work(clock, Schedule(seconds=6.9), items, cost=lambda item: item[1]) == items[:2]
    assert work(clock, Schedule(seconds=7.1), items, cost=lambda item: item[1]) == items[:3]


def test_kinds_are_judged_by_themselves_and_a_new_one_starts_while_there_is_time(clock):
    items = [(1.0, "a"), (4.0, "b"), (1.0, "a"), (4.0, "b"), (1.0, "a")]
    kind = {"kind": lambda item: item[1]}
    assert work(clock, Schedule(seconds=6.5), items, **kind) == items[:3]
    assert work(clock, Schedule(seconds=0.9), items, **kind) == items[:1]
    assert work(clock, Schedule(seconds=1.5), items, **kind) == items[:2]


@pytest.mark.parametrize(("seconds", "done"), [(None, 9), (0.5, 1), (1.5, 1), (2.5, 3), (102.5, 3), (150, 5), (250, 8)])
def test_spectra_of_inputs_are_judged_by_those_of_inputs(clock, monkeypatch, seconds, done):
    """A second for each layer's weights, a hundred for a model's inputs; the aggregate and two clients."""

    def takes(duration):
        def spectra(*_):
            clock.now += duration
            return {}

        return spectra

    monkeypatch.setattr("fedrebasin.strategies.probes.spectrum.weight_spectra", takes(1.0))
    monkeypatch.setattr("fedrebasin.strategies.probes.spectrum.activation_spectra", takes(100.0))
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    state = model.state_dict()
    replies = [SimpleNamespace(state=state)] * 2
    round_ = SimpleNamespace(server_round=1, state=state, replies=replies, merge=None, device=torch.device("cpu"))
    found = SpectrumProbe(model, batches=[torch.zeros(1, 3)], seconds=seconds)(round_)
    assert found == {"spectra": done, "spectra-left-out": 9 - done}


def test_nothing_to_do_takes_no_time(clock):
    assert work(clock, Schedule(seconds=1.0), []) == []


@pytest.mark.parametrize(("every", "due"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4]), (7, [])])
def test_a_probe_is_due_in_rounds_that_every_divides(every, due):
    rounds = [SimpleNamespace(server_round=number) for number in range(1, 7)]
    assert [round_.server_round for round_ in rounds if Schedule(every=every).due(round_)] == due


@pytest.mark.parametrize("options", [{"every": 0}, {"seconds": 0.0}, {"seconds": -1.0}, {"seconds": float("nan")}])
def test_schedules_are_checked(options):
    with pytest.raises(RebasinError, match="must be positive"):
        Schedule(**options)


def test_weights_that_are_computed_have_their_spectra():
    model = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    state = model.state_dict()
    round_ = SimpleNamespace(server_round=1, state=state, device=torch.device("cpu"))
    found = SpectrumProbe(model, clients=0)(round_)
    assert found["stable-rank-0.weight"] == pytest.approx(stable_rank(model[0].weight.detach()))
    assert found["stable-rank-2.weight"] == pytest.approx(stable_rank(state["2.weight"]))
