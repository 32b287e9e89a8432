"""Clients that send what training changed, and not the model that came of it: how they are told, and understood.

What is aligned is always a model: that which a node was sent, and its update. What the inner strategy gets is again an
update, from the model that the server sent: P(model + update) - model.
"""

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedrebasin import Permutation
from fedrebasin.state import State

from .errors import FormError
from .records import Template, sizes_of, to_state

#: A tensor of fewer entries may be of any length after training.
LARGE = 32
#: Of the model's length in every large tensor. Measured (section Updates of the results): 78 of 80 updates of a trained
#: model have less, and of 440 models that had learned anything none has, 0.236 at least.
SHORT = 0.2


class Updates:
    """The updates of a round's replies, as models and back.

    Identities: ``update(node, model(node, u)) == u`` but for rounding where nothing moved; the mean of what
    ``update`` gives, added to the model that was sent, is the mean of the aligned models.

    Args:
        template: of the global model.
        sent: what each node was sent, in the server's order of units.
        global_arrays: for nodes of which that is not known.
        own: the nodes' own orders of units in which it was sent to them.
    """

    def __init__(
        self,
        template: Template,
        sent: Mapping[int, ArrayRecord],
        global_arrays: ArrayRecord,
        own: Mapping[int, Permutation],
    ) -> None:
        self._template = template
        self._sent, self._global_arrays, self._own = sent, global_arrays, dict(own)
        self._states: dict[int, State] = {}  # by record: most strategies send one to all nodes

    def model(self, node_id: int, update: State) -> dict[str, Tensor]:
        """The model that a node has now, in its own order of units; a bool is sent as it is.

        Half precision becomes single: an update is lost in the rounding of a model's.
        """
        sent = self._base(node_id)
        if (own := self._own.get(node_id)) is not None:
            sent = own.inverse().apply(sent)
        return {key: _joined(sent[key], tensor, 1) for key, tensor in update.items()}

    def update(self, node_id: int, model: State) -> dict[str, Tensor]:
        """The update from what was sent to an aligned model."""
        sent = self._base(node_id)
        return {key: _joined(sent[key].to(tensor.device), tensor, -1) for key, tensor in model.items()}

    def _base(self, node_id: int) -> State:
        record = self._sent.get(node_id, self._global_arrays)
        if id(record) not in self._states:
            state = to_state(record)
            self._states[id(record)] = {key: state[key] for key in self._template.forms}
        return self._states[id(record)]


def _joined(sent: Tensor, other: Tensor, sign: int) -> Tensor:
    if other.dtype == torch.bool:
        return other
    dtype = torch.float32 if other.dtype == torch.float16 else other.dtype
    return other.to(dtype) + sign * sent.to(dtype)


def looks_like_update(sizes: Mapping[str, float], expected: Mapping[str, float], state: State) -> float | None:
    """How long a model is at most, measured by the global one, if that is ``SHORT`` in every large tensor.

    A model of the wrong kind is never taken for another: that is only said.

    Args:
        sizes: the root mean square of each tensor of floats.
        expected: in the global model; a tensor that is zero there says nothing.
        state: the model, of the same keys.
    """
    shares = [
        sizes[key] / usual for key, usual in expected.items() if usual and state[key].numel() >= LARGE and key in sizes
    ]
    return max(shares) if shares and max(shares) < SHORT else None


def demand_model(aggregate: State, before: State, who: str) -> None:
    """Refuse an aggregate of updates that is an update itself, where a model has to come of it.

    Args:
        aggregate: what a strategy made of updates.
        before: the model that was sent out.
        who: the strategy.

    Raises:
        FormError: if it is far shorter than that model in every large tensor.
    """
    if looks_like_update(sizes_of(aggregate), sizes_of(before), aggregate) is not None:
        raise FormError(
            f'{who} made an update of the updates that clients send (sends="update"), and not a model: let its '
            "aggregate_train return the model that it sent plus their mean"
        )
