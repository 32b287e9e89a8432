"""What belongs to Flower's former server API is refused where it is given, with how to move over."""

import warnings

import flwr.server
import pytest
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server import strategy as former
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fedrebasin import Identity, PermutationSpec, RebasinError
from fedrebasin.strategies import Aligned, FedMergeMany, FedRebasin, FedRegMean, FedRidgeHead, FedWideAvg
from tests.strategies.helpers import AXES

SPEC = PermutationSpec.from_axes(AXES)


class OwnFormer(former.FedAvg):
    """A user's own, on top of a former one."""


FORMER = {
    "FedAvg": former.FedAvg,
    "FedAdam": lambda: former.FedAdam(initial_parameters=flwr.common.ndarrays_to_parameters([])),
    "a subclass": OwnFormer,
    "inside DP": lambda: DifferentialPrivacyServerSideFixedClipping(former.FedAvg(), 1.0, 1.0, 2),
    "components": lambda: ServerAppComponents(strategy=former.FedAvg(), config=ServerConfig(num_rounds=1)),
}


@pytest.mark.parametrize("make", FORMER.values(), ids=FORMER)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: Aligned(strategy=inner, aligner=Identity()),
        lambda inner: FedRebasin(inner, spec=SPEC),
        lambda inner: FedMergeMany(inner, spec=SPEC),
        lambda inner: FedWideAvg(inner),
        lambda inner: FedRegMean(inner, spec=SPEC),
        lambda inner: FedRidgeHead(inner, spec=SPEC, model=None, example_inputs=None),
    ],
    ids=["Aligned", "FedRebasin", "FedMergeMany", "FedWideAvg", "FedRegMean", "FedRidgeHead"],
)
def test_a_former_strategy_is_refused_where_it_is_given(wrap, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = make()
    with pytest.raises(
        RebasinError, match=r"of flwr\.server.*take the strategy from flwr\.serverapp\.strategy"
    ) as found:
        wrap(inner)
    assert "\n" not in str(found.value)


def test_a_former_server_says_that_it_cannot_run_an_aligned_strategy():
    components = ServerAppComponents(strategy=FedRebasin(FedAvg(), spec=SPEC), config=ServerConfig(num_rounds=1))
    server = flwr.server.Server(client_manager=flwr.server.SimpleClientManager(), strategy=components.strategy)
    with pytest.raises(RebasinError, match=r"FedRebasin was given to a Server.*flwr\.serverapp"):
        server.fit(num_rounds=1, timeout=1.0)


class FromAnotherPackage(FedAvg):
    """Named like a former module, and none."""

    __module__ = "flwr.serverapp_extras"


def test_todays_strategies_are_not_taken_for_former_ones():
    for inner in (None, FedAvg(), FromAnotherPackage()):
        Aligned(inner, aligner=Identity())
