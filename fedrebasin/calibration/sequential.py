"""Regression layer by layer: the merged model's own features are regressed on the clients' pre-activations."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fedrebasin.calibration.regression import solve_symmetric
from fedrebasin.errors import MergeError
from fedrebasin.running import Batch, demand_reiterable, number_of_examples
from fedrebasin.state import State
from fedrebasin.sums import LayerRegression, Sums, add_sums, collect_sums
from fedrebasin.watching import affine_matrix, affine_weights, with_affine_matrix


def regressed_layer(state: State, weight: str, sums: Sums, ridge: float = 1e-3) -> dict[str, Tensor]:
    """A model whose layer ``weight`` is the least-squares map from its features to the clients' pre-activations.

    Args:
        state: the model that is being merged.
        weight: key of the layer's weight.
        sums: of :class:`LayerRegression`, over all clients, with units in the order of ``state``.
        ridge: pull towards the layer as it is, relative to the mean of the Gram matrix's diagonal.

    Raises:
        MergeError: if there are no sums, or the matrix is singular and ``ridge`` is 0.
    """
    if not sums:
        raise MergeError(f"{weight}: there are no sums; no client has data")
    gram, cross = sums["gram"].double(), sums["cross"].double()
    prior = affine_matrix(state, weight, len(gram)).to(gram.device)
    pull = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
    pull = torch.where(pull > 0, pull, float(ridge > 0))[:, None]
    solution = solve_symmetric(
        gram + torch.diag_embed(pull.expand(gram.shape[:2])), cross + pull[..., None] * prior.mT, weight
    )
    return {**state, **with_affine_matrix(state, weight, solution.mT)}


def sequential_regression(
    model: nn.Module,
    states: Sequence[State],
    clients: Sequence[Iterable[Batch]],
    average: State,
    ridge: float = 1e-3,
) -> dict[str, Tensor]:
    """Layer by layer, the merged model's features regressed on the clients' pre-activations; a round of sums a layer.

    RegMean's Gram matrices are of each client's own features; what reaches a deep layer of the merged model differs
    from them, and here each layer is fitted to what really reaches it.

    Identity: equal models give that model.

    Args:
        model: the module; neither its parameters nor its mode change.
        states: the clients' models, aligned.
        clients: for each its batches, read once for each layer.
        average: the average of the models: where the regression starts from and what it is pulled towards.
        ridge: how strongly, relative to the mean of each Gram matrix's diagonal.

    Returns:
        a state dict; parameters that are not multiplied with data are shared with ``average``.

    Raises:
        MergeError: if there are not as many clients as models, or no data.
    """
    if len(states) != len(clients) or not states:
        raise MergeError(f"{len(states)} models and {len(clients)} clients' data: as many are needed, at least one")
    for batches in clients:
        demand_reiterable(batches, "sequential regression")
    first = next((batch for batches in clients for batch in batches if number_of_examples(batch)), None)
    if first is None:
        raise MergeError("sequential regression: no client has data")
    result = dict(average)
    for weight in affine_weights(model, average, first):
        sums: Sums = {}
        for own, batches in zip(states, clients, strict=True):
            statistic = LayerRegression(weight, own)
            sums = add_sums(sums, collect_sums(statistic, model, result, batches))
        result = regressed_layer(result, weight, sums, ridge)
    return result
