"""Clients whose units are in an order of their own: the same functions, which cannot be averaged as they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from fedrebasin import Permutation, PermutationSpec
from fedrebasin.strategies import FedRebasin
from tests.flower.harness import Serve, run_app, unwrapped


def in_other_orders(spec: PermutationSpec) -> Callable[..., Message]:
    """A mod: what a client sends after its training has its units in an order of its own."""

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        reply = call_next(message, context)
        if message.metadata.message_type == "train":
            state = reply.content["arrays"].to_torch_state_dict()
            own = spec.rename_like(state).bind(state)
            member = Permutation.random(own, torch.Generator().manual_seed(message.metadata.dst_node_id))
            reply.content["arrays"] = ArrayRecord(member.apply(state))
        return reply

    return mod


def assert_orders_do_not_matter(
    serve: Serve,
    client: Callable[..., ClientApp],
    spec: PermutationSpec,
    outputs: Callable[[dict[str, Tensor]], Tensor],
    folder: Path,
    part: PermutationSpec | None = None,
) -> None:
    """Aligned, clients in orders of their own make the model that clients in one order make; averaged, they do not.

    Args:
        serve: the server side of an app, see :mod:`tests.flower.harness`.
        client: ``client(mods)`` is its ClientApp.
        spec: what the wrapper is given.
        outputs: of the global model.
        folder: of the app.
        part: the spec of what is sent, if that is not all.
    """
    mods = [in_other_orders(spec if part is None else part)]
    runs = {
        "one": (client([]), unwrapped),
        "averaged": (client(mods), unwrapped),
        "aligned": (client(mods), lambda strategy: FedRebasin(strategy, spec=spec)),
    }
    found = {
        name: outputs(run_app(serve, app, folder / name, wrap).result.arrays.to_torch_state_dict())
        for name, (app, wrap) in runs.items()
    }
    size = float(found["one"].abs().max())
    assert float((found["aligned"] - found["one"]).abs().max()) < 1e-3 * size
    assert float((found["averaged"] - found["one"]).abs().max()) > 0.05 * size
