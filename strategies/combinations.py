"""Which parts go together: what each of them demands, it says itself; what cannot work is refused when it is made."""

from collections.abc import Sequence
from logging import WARNING

from flwr.serverapp.strategy import Strategy

from fedrebasin import Aligner, PermutationSpec, RebasinError, SpecError
from fedrebasin.errors import choose
from fedrebasin.merging import two_step
from fedrebasin.state import State, is_statistic, is_variance

from .flower import is_legacy, log
from .round import BatchNormRecalibration, Calibrator, Probe
from .traits import Traits, traits_of, unwrap


def check_parts(
    who: str,
    strategy: Strategy,
    spec: PermutationSpec | None,
    aligner: Aligner,
    calibrators: Sequence[Calibrator],
    probes: Sequence[Probe],
    streaming: bool,
    sends: str = "model",
) -> None:
    """Refuse parts that do not fit together, before a run; warn of a calibrator that a robust strategy does not expect.

    Raises:
        SpecError: if an aligner that permutes has no spec.
        RebasinError: for a strategy of Flower's former API, an order in which a strategy would not do what it promises,
            or a part that needs what the others do not leave it.
    """
    if former := next((layer for layer in unwrap(strategy) if is_legacy(layer)), None):
        raise RebasinError(former_api(f"{who} was given {_name(former)} of flwr.server"))
    traits, inner, steps = traits_of(strategy), _name(strategy), two_step(aligner)
    idle = steps.idle
    if spec is None and not idle:
        raise SpecError(f"{who} needs spec=, as in PermutationSpec.trace(model, example_inputs)")
    choose("sends", sends, ("model", "update"))
    if sends == "update" and traits.takes_models and not (idle and not calibrators):
        raise RebasinError(
            f'{inner} takes the updates of sends="update" for models, and would make their mean the global model: use '
            "a strategy whose aggregate_train adds it to the model that it sent, or let clients send models"
        )
    if traits.aligns:
        raise RebasinError(f"{inner} inside {who}: its replies would be aligned twice; one is enough")
    rewriting = [_name(part) for part in calibrators if getattr(part, "rewrites_weights", True)]
    if rewriting and traits.keeps_state:
        raise RebasinError(
            f"{', '.join(rewriting)} rewrites weights after {inner} has aggregated, which keeps its own copy of the "
            "global model and would undo it: use FedAvg inside, or buffers only (keeps_state = False on the class of "
            f"{inner} says that it keeps none)"
        )
    one_by_one = streaming and not traits.needs_all
    if one_by_one and not idle and steps.needs_all:
        raise RebasinError(
            f"{_name(aligner)} needs all models at once: use AlignTo, whose reference is no position, or "
            "streaming=False"
        )
    if needing := [_name(part) for part in calibrators if getattr(part, "needs_all", False)]:
        if idle:
            raise RebasinError(f"{needing[0]} needs aligned models: use an aligner other than {_name(aligner)}")
        if one_by_one:
            raise RebasinError(
                f"{needing[0]} needs the clients' models, which streaming lets go of: use streaming=False"
            )
    if traits.robust:
        for part in calibrators:
            if not (getattr(part, "robust", False) or getattr(part, "private", False)):
                log(
                    WARNING,
                    "%s inside %s expects attackers, and %s does not say robust = True: one client may own "
                    "what it makes of sums",
                    *(inner, who, _name(part)),
                )
    if traits.private:
        _check_privacy(traits, inner, aligner, calibrators, probes)


def demand_whole(absent: Sequence[str], parts: Sequence[Calibrator | Probe]) -> None:
    """Refuse parts that run the model where some of its arrays stay with the clients.

    Raises:
        RebasinError: naming the first.
    """
    for part in parts:
        if absent and getattr(part, "needs_whole", False):
            more = f" and {len(absent) - 1} more of its arrays stay" if len(absent) > 1 else " stays"
            raise RebasinError(
                f"{_name(part)} runs the whole model, and {absent[0]}{more} with the clients: leave it out, or send all"
            )


def suggestion(strategy: Strategy, calibrators: Sequence[Calibrator], idle: bool, state: State) -> str:
    """What to say of BatchNorm's statistics in an aggregate; nothing where all is well, or they are measured anew.

    Args:
        strategy: the inner one.
        calibrators: that have had their turn.
        idle: whether nothing is aligned: then the strategy's own statistics go on.
        state: the new global model.
    """
    if any(isinstance(part, BatchNormRecalibration) for part in calibrators):
        return ""
    found = [key for key, tensor in state.items() if is_variance(key) and bool((tensor < 0).any())]
    said = "has negative variances in" if found else "takes steps of its own along"
    if idle and not found and traits_of(strategy).steps_statistics:
        found = list(filter(is_statistic, state))
    advice = "add BatchNormRecalibration() to calibrators, or align: then they are averaged"
    return f"{_name(strategy)} {said} running statistics ({found[0]}): {advice}" if found else ""


def former_api(what: str) -> str:
    """How to move on from Flower's former server API, which knows other strategies."""
    return (
        f"{what}, Flower's former API: take the strategy from flwr.serverapp.strategy, and call its "
        "start(grid, arrays, num_rounds=...) in the function under @app.main() of a flwr.serverapp.ServerApp"
    )


def inside_another(who: str, strategy: Strategy) -> str:
    """Why an alignment may not be inside of another strategy, which sees replies first and the model last."""
    return (
        f"a strategy around {who} would see replies that are not aligned yet, and {who} would not see the model that "
        f"it makes: put the alignment outside, {who}(THE_OTHER({_name(strategy)}()))"
    )


def _check_privacy(
    traits: Traits, inner: str, aligner: Aligner, calibrators: Sequence[Calibrator], probes: Sequence[Probe]
) -> None:
    if traits.clips_on_clients and not two_step(aligner).idle:
        raise RebasinError(
            f"{inner}: clients clip their updates before the server permutes them, and a permuted update can be longer "
            "than the clipping norm: align on the client, mods=[fixedclipping_mod, AlignMod(spec)], and not on the "
            "server"
        )
    if not two_step(aligner).idle and not two_step(aligner).private:
        raise RebasinError(
            f"{inner}: with {_name(aligner)} as it is set, how one client's model is permuted depends on the "
            "others, which the noise does not cover: use AlignTo() or AlignTo(reference=a state dict)"
        )
    for calibrator in calibrators:
        if not getattr(calibrator, "private", False):
            raise RebasinError(
                f"{_name(calibrator)} after {inner}: what it takes from the clients carries no noise; what says "
                "private = True may follow, such as BatchNormRecalibration and TemperatureCalibration on server data"
            )
    for probe in probes:
        if getattr(probe, "asks_clients", False):
            raise RebasinError(
                f"{_name(probe)} after {inner} would show clients one another's models, which carry no noise: "
                "give it a model and batches on the server"
            )


def _name(part: object) -> str:
    return type(part).__name__
