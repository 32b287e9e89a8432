"""What puts strategies in proportion: the clients of round 1, alone and together, all the data, and the way between."""

from collections.abc import Sequence

from flwr.app import ArrayRecord
from torch import Tensor

from fedrebasin import Barrier, WeightMatching, loss_barrier
from fedrebasin.strategies import to_state
from fedrebasin.sums import ensemble_log_probabilities

from ..app import Progress, judge_of
from ..report import REFERENCES, Figures, Row
from ..training import Federation, predict

PATH_POINTS = 25
PATH_EXAMPLES = 2000


def reference_rows(federation: Federation, clients: Sequence[ArrayRecord], report: Progress) -> list[Row]:
    """One row for each of ``REFERENCES``.

    Args:
        federation: of the comparison.
        clients: their models after round 1.
        report: told about the epochs of the training on all data.
    """
    config, judge, model = federation.config, judge_of(federation), federation.server_model()
    logits = []
    for arrays in clients:
        model.load_state_dict(arrays.to_torch_state_dict())
        logits.append(federation.predict(model))
    alone = [judge(one) for one in logits]
    best = max(range(len(alone)), key=lambda client: alone[client].accuracy)
    everything = federation.train_on_all(lambda epoch: report("all data", epoch, config.local_epochs))
    judged: dict[str, Tensor] = {
        "best-client": logits[best],
        "ensemble": ensemble_log_probabilities([one.double() for one in logits]),
        "all-data": predict(everything, federation.dataset.test_inputs),
    }
    rows = {name: Row(name, config.seed, 1, judge(one), reliability=judge.bins(one)) for name, one in judged.items()}
    rows["mean-client"] = Row("mean-client", config.seed, 1, Figures.mean(alone))
    return [rows[name] for name in REFERENCES]


def paths_between(federation: Federation, clients: Sequence[ArrayRecord]) -> dict[str, Barrier]:
    """The loss along the line between the first two clients, before and after the second one was permuted."""
    if len(clients) < 2:
        return {}
    first, second = (
        {key: tensor.to(federation.device) for key, tensor in to_state(arrays).items()} for arrays in clients[:2]
    )
    aligned = WeightMatching(seed=federation.config.seed)(federation.spec, reference=first, candidate=second)
    dataset = federation.dataset
    held_out, reported = dataset.test_split()
    shown = reported[:PATH_EXAMPLES]
    inputs, labels = dataset.test_inputs.to(federation.device), dataset.test_labels.to(federation.device)
    model = federation.server_model()
    return {
        name: loss_barrier(
            model,
            first,
            end,
            [(inputs[shown], labels[shown])],
            points=PATH_POINTS,
            recalibrate=[(inputs[held_out], labels[held_out])] if federation.has_batch_norm else None,
        )
        for name, end in (("before", second), ("after", aligned.apply(second)))
    }
