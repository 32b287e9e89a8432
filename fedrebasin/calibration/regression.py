"""RegMean: each linear map becomes the least-squares compromise of the clients' maps, from Gram matrices (Jin 2023)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedrebasin.errors import MergeError
from fedrebasin.state import State, demand_numbers
from fedrebasin.watching import affine_matrix, with_affine_matrix


def solve_symmetric(matrix: Tensor, right: Tensor, where: str) -> Tensor:
    """Solve with a positive definite matrix by Cholesky, its diagonal scaled to 1 first.

    Args:
        matrix: float64, shape ``(..., n, n)``.
        right: float64, shape ``(..., n, m)``.
        where: begins the message.

    Raises:
        MergeError: if the matrix is singular to rounding.
    """
    scale = matrix.diagonal(dim1=-2, dim2=-1).sqrt().reciprocal()
    scaled = scale[..., :, None] * matrix * scale[..., None, :]
    factor, info = torch.linalg.cholesky_ex(scaled)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    if bool(info.any()) or not bool((pivots > 1e-7).all()):
        raise MergeError(f"{where}: the summed Gram matrix is singular; give a positive ridge, or less correlation")
    return scale[..., :, None] * torch.cholesky_solve(scale[..., :, None] * right, factor)


@dataclass
class RegressionMean:
    """Folds in one client's model and Gram matrices at a time, and lets go of them: see :func:`regression_mean`.

    Args:
        correlation: factor on what is off the Gram matrices' diagonals, in [0, 1].
        ridge: pull towards the average, relative to the mean of each matrix's diagonal.
    """

    correlation: float = 0.9
    ridge: float = 1e-6
    _matrices: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _targets: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _clients: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.correlation <= 1 or not 0 <= self.ridge < math.inf:
            raise MergeError(
                f"correlation {self.correlation} must lie in [0, 1] and ridge {self.ridge} must not be negative"
            )

    def add(self, state: State, grams: Mapping[str, Tensor]) -> None:
        """Fold in one client.

        Args:
            state: its model, aligned.
            grams: its Gram matrices by weight, in the coordinates of ``state`` (see ``permute_gram``).

        Raises:
            MergeError: if a matrix fits no weight, or this client's are for other weights than the ones before.
        """
        if self._clients and set(grams) != set(self._matrices):
            different = ", ".join(sorted(set(grams) ^ set(self._matrices)))
            raise MergeError(f"the clients' Gram matrices are for different weights: {different}")
        demand_numbers(state)
        # Nothing is added before all of it is known to fit.
        for key, gram in grams.items():
            fits = key in state and gram.shape[1] == math.prod(state[key].shape[1:]) + 1
            if (
                not fits
                or not len(gram)
                or len(state[key]) % len(gram)
                or gram.shape[1:] != gram.shape[1:2] * (gram.dim() - 1)
            ):
                raise MergeError(f"{key}: a Gram matrix of shape {tuple(gram.shape)} fits no weight")
            own = affine_matrix(state, key, len(gram))
            if self._clients and (len(gram), gram.dim(), own.mT.shape) != (
                len(self._matrices[key]),
                self._matrices[key].dim(),
                self._targets[key].shape,
            ):
                raise MergeError(f"{key}: a Gram matrix of shape {tuple(gram.shape)} does not fit the other clients'")
        for key, gram in grams.items():
            matrix, target = self._terms(state, key, gram.double())
            if self._clients:
                self._matrices[key] += matrix
                self._targets[key] += target
            else:
                self._matrices[key], self._targets[key] = matrix, target
        self._clients += 1

    def _terms(self, state: State, key: str, gram: Tensor) -> tuple[Tensor, Tensor]:
        own = affine_matrix(state, key, len(gram)).to(gram.device)
        size = own.shape[-1]  # without a bias the appended 1 is no feature
        if gram.dim() == 2:
            return gram[:, :size].clone(), gram[:, :size, None] * own.mT
        matrix = gram[:, :size, :size]
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        matrix = self.correlation * matrix + torch.diag_embed((1 - self.correlation) * diagonal)
        return matrix, matrix @ own.mT

    def finish(self, average: State) -> dict[str, Tensor]:
        """The merged model.

        Args:
            average: the average of the models: what the solution is pulled towards, and what parameters without a
                Gram matrix become.

        Raises:
            MergeError: if no client was added, or a matrix is singular and ``ridge`` is 0.
        """
        if not self._clients:
            raise MergeError("there are no clients to merge")
        result = dict(average)
        for key, matrix in self._matrices.items():
            prior = affine_matrix(average, key, len(matrix)).to(matrix.device)
            diagonal = matrix if matrix.dim() == 2 else matrix.diagonal(dim1=1, dim2=2)
            # A feature that is zero on all data leaves its weights undetermined: the ridge makes them the average's.
            pull = self.ridge * diagonal.mean(1, keepdim=True)
            pull = torch.where(pull > 0, pull, float(self.ridge > 0))
            target = self._targets[key] + pull[..., None] * prior.mT
            if matrix.dim() == 2:
                if bool((matrix + pull <= 0).any()):
                    raise MergeError(f"{key}: a feature is zero on all data; give a positive ridge")
                solution = target / (matrix + pull)[..., None]
            else:
                solution = solve_symmetric(matrix + torch.diag_embed(pull.expand(diagonal.shape)), target, key)
            result.update(with_affine_matrix(average, key, solution.mT))
        return result


def regression_mean(
    states: Sequence[State],
    grams: Iterable[Mapping[str, Tensor]],
    average: State,
    correlation: float = 0.9,
    ridge: float = 1e-6,
) -> dict[str, Tensor]:
    """RegMean (Jin 2023, Eq. 2): ``W = (sum_i G_i)^-1 sum_i G_i W_i`` for every weight with Gram matrices.

    The merged map is the one whose outputs are closest to each client's on that client's own features. Biases are
    solved for along with the weights (each feature vector ends in a 1); everything else is taken from the average.

    Identities: equal models give that model; with ``correlation=0`` each weight is averaged with the size of its
    feature; the order of the clients does not matter.

    Args:
        states: the clients' models, aligned.
        grams: for each its Gram matrices by weight, in its coordinates after the alignment, shape ``(blocks,
            features + 1, features + 1)`` or only the diagonals; read one at a time.
        average: the average of the models.
        correlation: factor on what is off the diagonals (RegMean's alpha), in [0, 1].
        ridge: pull towards the average, relative to the mean of the diagonal. It decides what the data leave open:
            weights of features that are always zero, directions without data.

    Returns:
        a state dict; tensors without a Gram matrix are shared with ``average``.

    Raises:
        MergeError: if there are not as many Gram matrices as models, they fit no weight, or one is singular and
            ``ridge`` is 0.
    """
    merge = RegressionMean(correlation, ridge)
    remaining = iter(grams)
    for state in states:
        if (own := next(remaining, None)) is None:
            raise MergeError(f"there are fewer than {len(states)} clients' Gram matrices")
        merge.add(state, own)
    if next(remaining, None) is not None:
        raise MergeError(f"there are Gram matrices of more than {len(states)} clients")
    return merge.finish(average)
