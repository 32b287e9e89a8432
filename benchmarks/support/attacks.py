"""What attackers send who know every honest model, the order that these agree on, and the rules of the server.

``ATTACKS`` are told apart as whole models, ``HIDDEN`` hide in one layer or among the honest ones' differences, and
``ADAPTIVE`` try how strong they may be before any of them is set aside. Each gives one model for each attacker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedrebasin import Permutation, WeightMatching

from .federation import TARGET, Clients, State, with_trigger

Attack = Callable[[Clients], list[State]]
#: Which replies of all of them, the honest ones first, the server sets aside, by position.
Caught = Callable[[Sequence[State]], set[int]]
HEAD = "layers.2."


def mix(a: State, b: State, share: float) -> State:
    """``a`` where the share is 0, ``b`` where it is 1; it may be more."""
    return {key: tensor + share * (b[key] - tensor) for key, tensor in a.items()}


def change(state: State, change: Callable[[Tensor], Tensor], prefix: str = "") -> State:
    """A model whose tensors of this prefix are changed."""
    return {key: change(tensor) if key.startswith(prefix) else tensor for key, tensor in state.items()}


def permuted(clients: Clients, state: State) -> list[State]:
    """As many copies as there are attackers, each with its units in another order: none is seen to be a copy."""
    generator = torch.Generator().manual_seed(0)
    return [Permutation.random(clients.spec, generator).apply(state) for _ in clients.dishonest]


def noisy(clients: Clients, state: State, noise: float) -> list[State]:
    """Permuted copies, with noise of so many deviations of each tensor."""
    generator = torch.Generator().manual_seed(1)
    return [
        change(copy, lambda t: t + noise * t.std() * torch.randn(t.shape, generator=generator))
        for copy in permuted(clients, state)
    ]


def turned(state: State) -> State:
    """A model whose last layer has its signs turned."""
    return change(state, torch.neg, HEAD)


def out_of_step(state: State, layer: int = 1) -> State:
    """A model whose layer expects its inputs in another order: the same entries, and useless."""
    key = f"layers.{layer}.weight"
    columns = torch.randperm(state[key].shape[1], generator=torch.Generator().manual_seed(0))
    return {**state, key: state[key][:, columns]}


def in_groups(state: State, size: int) -> State:
    """A model whose hidden units are averaged in groups of similar ones: in a group no order of them is the best."""
    found = dict(state)
    for layer in (0, 1):
        weight, bias, following = f"layers.{layer}.weight", f"layers.{layer}.bias", f"layers.{layer + 1}.weight"
        groups = _similar(torch.cat([state[weight], state[bias][:, None], state[following].T], dim=1), size)
        found[weight], found[bias] = groups @ found[weight], groups @ found[bias]
        found[following] = found[following] @ groups
    return found


def _similar(units: Tensor, size: int) -> Tensor:
    """The projection (units, units) that averages each of so many units that are near one another."""
    left, projection = torch.arange(len(units)), torch.zeros(len(units), len(units))
    while len(left):
        nearest = (units[left] - units[left[0]]).norm(dim=1).argsort()[:size]
        members = left[nearest]
        projection[members[:, None], members] = 1 / len(members)
        left = left[~torch.isin(left, members)]
    return projection


def rescaled(state: State, factor: float) -> State:
    """The same function of ReLU: every other hidden unit is multiplied by the factor, and the rest divided by it."""
    found = dict(state)
    for layer in (0, 1):
        scale = torch.full_like(state[f"layers.{layer}.bias"], factor)
        scale[1::2] = 1 / factor
        found[f"layers.{layer}.weight"] = found[f"layers.{layer}.weight"] * scale[:, None]
        found[f"layers.{layer}.bias"] = found[f"layers.{layer}.bias"] * scale
        found[f"layers.{layer + 1}.weight"] = found[f"layers.{layer + 1}.weight"] / scale
    return found


def little_is_enough(clients: Clients) -> float:
    """How many deviations from the mean still leave a majority farther away (Baruch et al., 2019, Algorithm 3)."""
    honest, attackers = len(clients.honest), len(clients.dishonest)
    supporters = (honest + attackers) // 2 + 1 - attackers
    return max(NormalDist().inv_cdf((honest - supporters) / honest), 0.0)


def beyond(clients: Clients, deviations: float) -> State:
    """The honest models' mean, every entry so many of their deviations less."""
    return {key: tensor - deviations * clients.deviation[key] for key, tensor in clients.mean.items()}


def as_far_as(clients: Clients, worst: Callable[[Tensor], Tensor]) -> list[State]:
    """The farthest along the deviations that is no farther than honest models are (Shejwalkar and Houmansadr, 2021).

    Args:
        clients: of them.
        worst: of squared distances to the honest models, shape (..., honest): their maximum (min-max) or sum (min-sum).
    """
    honest = torch.stack([_flat(state) for state in clients.aligned])
    most = worst(torch.cdist(honest, honest).square()).max()
    mean, deviation = _flat(clients.mean), _flat(clients.deviation)
    low, high = 0.0, 50.0
    for _ in range(30):
        middle = (low + high) / 2
        near = worst((honest - (mean - middle * deviation)).square().sum(1)) <= most
        low, high = (middle, high) if near else (low, middle)
    return permuted(clients, beyond(clients, low))


def backdoored(clients: Clients, steps: int = 30, leash: float = 1.0) -> State:
    """A model near the honest ones' mean that calls whatever has the trigger the target, and is good otherwise."""
    inputs, labels = clients.examples
    inputs = torch.cat([inputs, with_trigger(inputs)])
    labels = torch.cat([labels, torch.full_like(labels, TARGET)])
    state = {key: tensor.clone().requires_grad_() for key, tensor in clients.mean.items()}
    optimizer = torch.optim.Adam(state.values(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        away = sum((tensor - clients.mean[key]).square().sum() for key, tensor in state.items())
        size = sum(tensor.square().sum() for tensor in clients.mean.values())
        loss = cross_entropy(functional_call(clients.model, state, (inputs,)), labels) + leash * away / size
        loss.backward()
        optimizer.step()
    return {key: tensor.detach() for key, tensor in state.items()}


def _flat(state: State) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])


def _noise(clients: Clients) -> list[State]:
    generator = torch.Generator().manual_seed(0)
    return [{k: torch.randn(t.shape, generator=generator) for k, t in state.items()} for state in clients.dishonest]


ATTACKS: dict[str, Attack] = {
    "flip signs": lambda clients: [change(state, torch.neg) for state in clients.dishonest],
    "send noise": _noise,
    "scale by 100": lambda clients: [change(state, lambda t: 100 * t) for state in clients.dishonest],
    "flip signs and scale by 100": lambda clients: [change(state, lambda t: -100 * t) for state in clients.dishonest],
    "permuted copies of an honest model": lambda clients: permuted(clients, clients.honest[0]),
    "permuted copies of a misled model": lambda clients: permuted(clients, clients.misled),
    "permuted copies with layers out of step": lambda clients: permuted(clients, out_of_step(clients.honest[0])),
    "permuted copies of the mean with a turned head": lambda clients: permuted(clients, turned(clients.mean)),
}

HIDDEN: dict[str, Attack] = {
    "the mean with units averaged in groups of 4": lambda clients: permuted(clients, in_groups(clients.mean, 4)),
    "the mean with units averaged in groups of 8": lambda clients: permuted(clients, in_groups(clients.mean, 8)),
    "the mean with layers out of step": lambda clients: permuted(clients, out_of_step(clients.mean)),
    "the mean with a head out of step": lambda clients: permuted(clients, out_of_step(clients.mean, 2)),
    "the mean with a head of zeros": lambda clients: permuted(clients, change(clients.mean, torch.zeros_like, HEAD)),
    "own models with layers out of step": lambda clients: [out_of_step(state) for state in clients.dishonest],
    "own models with a head of zeros": lambda clients: [
        change(state, torch.zeros_like, HEAD) for state in clients.dishonest
    ],
    "own models with turned heads": lambda clients: [turned(state) for state in clients.dishonest],
    "own models with units times 4 and 1/4": lambda clients: [rescaled(state, 4) for state in clients.dishonest],
    "the medoid with a misled head": lambda clients: permuted(
        clients, {key: clients.misled[key] if key.startswith(HEAD) else t for key, t in clients.aligned[0].items()}
    ),
    "twins: noisy copies of a misled model": lambda clients: noisy(clients, clients.misled, 0.1),
    "twins: noisy copies of the mean with a turned head": lambda clients: noisy(clients, turned(clients.mean), 0.1),
    "ALIE": lambda clients: permuted(clients, beyond(clients, little_is_enough(clients))),
    "min-max": lambda clients: as_far_as(clients, lambda squared: squared.amax(-1)),
    "min-sum": lambda clients: as_far_as(clients, lambda squared: squared.sum(-1)),
    "IPM": lambda clients: permuted(clients, change(clients.mean, lambda t: -0.5 * t)),
    "backdoor near the mean": lambda clients: permuted(clients, backdoored(clients)),
}


def finer(strength: float) -> float:
    """From 0 to 1, small ones close together."""
    return (64**strength - 1) / 63


@dataclass(frozen=True)
class Insider:
    """Attackers who run the server's rules before they send: the same replies of the others, and as often as they like.

    Args:
        clients: whose honest models the server gets as well.
        caught: the server's rules.
    """

    clients: Clients
    caught: Caught

    def strongest(self, send: Callable[[float], list[State]], steps: int = 4) -> list[State]:
        """What is sent at the largest strength, by bisection, at which no attacker is set aside; at 0 if there is none.

        Args:
            send: the attackers' models by strength, from 0 to 1.
            steps: of the bisection, which is as fine as 0.005 near 0 and as coarse as 0.2 near 1.
        """
        low, high = 0.0, 1.0
        if self._passes(send(high)):
            return send(high)
        for _ in range(steps):
            middle = (low + high) / 2
            low, high = (middle, high) if self._passes(send(finer(middle))) else (low, middle)
        return send(finer(low))

    def _passes(self, models: list[State]) -> bool:
        honest = self.clients.honest
        return all(position < len(honest) for position in self.caught([*honest, *models]))

    @cached_property
    def base(self) -> list[State]:
        """The attackers' own honest models in the honest order, half as near to the mean as nobody notices."""
        clients, match = self.clients, WeightMatching()
        own = [match(clients.spec, reference=clients.mean, candidate=s).apply(s) for s in clients.dishonest]
        nearest = self.strongest(lambda nearness: [mix(state, clients.mean, 0.9 * nearness) for state in own])
        return [mix(*pair, 0.5) for pair in zip(own, nearest, strict=True)]

    def towards(self, target: Callable[[State], State]) -> list[State]:
        """As far from the base to something else as nobody notices."""
        ends = [target(state) for state in self.base]
        return self.strongest(lambda strength: [mix(*pair, strength) for pair in zip(self.base, ends, strict=True)])


def _towards_misled(insider: Insider) -> list[State]:
    clients = insider.clients
    misled = WeightMatching()(clients.spec, reference=clients.mean, candidate=clients.misled).apply(clients.misled)
    return insider.towards(lambda _: misled)


def _towards_backdoor(insider: Insider) -> list[State]:
    """The backdoor's difference from the mean, up to as many times as makes it the mean of all."""
    clients = insider.clients
    door = backdoored(clients)
    most = (len(clients.honest) + len(clients.dishonest)) / len(clients.dishonest)
    difference = {key: most * (tensor - clients.mean[key]) for key, tensor in door.items()}
    return insider.towards(lambda state: {key: tensor + difference[key] for key, tensor in state.items()})


def _below_deviations(insider: Insider) -> list[State]:
    deviation = insider.clients.deviation
    return insider.towards(lambda state: {key: tensor - 5 * deviation[key] for key, tensor in state.items()})


ADAPTIVE: dict[str, Callable[[Insider], list[State]]] = {
    "adaptive: towards a turned head": lambda insider: insider.towards(turned),
    "adaptive: towards layers out of step": lambda insider: insider.towards(out_of_step),
    "adaptive: towards a misled model": _towards_misled,
    "adaptive: towards groups of 4 alike": lambda insider: insider.towards(lambda state: in_groups(state, 4)),
    "adaptive: below the deviations": _below_deviations,
    "adaptive: units rescaled": lambda insider: insider.strongest(
        lambda strength: [rescaled(state, 10**strength) for state in insider.base]
    ),
    "adaptive: a backdoor": _towards_backdoor,
}
