"""Federations with attackers among the clients: what inner strategies make of the same replies, by alignment."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from flwr.serverapp.strategy import Strategy

from fedrebasin import WeightMatching

from .attacks import ADAPTIVE, ATTACKS, HIDDEN, Insider
from .federation import (
    Clients,
    State,
    aggregated,
    aligned_beforehand,
    asked,
    handed_on,
    positions,
    robust,
    train_clients,
)

NONE = "none"
US, BEFOREHAND, NOT = "by us", "beforehand", "not"
ALIGNMENTS = (US, BEFOREHAND, NOT)
WIDTH, EXAMPLES, STEPS = 64, 500, 80
TRAINED = 12, 3  # of whom the first ones take part


@dataclass(frozen=True)
class Setting:
    """Who takes part.

    Args:
        alpha: of the Dirichlet distribution of classes; None for examples of the whole training set.
        honest: clients.
        attackers: clients.
        seeds: how many are reported.
    """

    alpha: float | None
    honest: int
    attackers: int
    seeds: int

    @property
    def strategies(self) -> dict[str, Callable[[], Strategy]]:
        """Told how many attackers to expect."""
        clients = self.honest + self.attackers
        return robust(self.attackers, max(0.25, self.attackers / clients))


SETTINGS = {
    "iid, 20 %": Setting(None, 12, 3, 20),
    "iid, 10 %": Setting(None, 9, 1, 5),
    "iid, 30 %": Setting(None, 7, 3, 5),
    "Dirichlet 0.1, 20 %": Setting(0.1, 12, 3, 20),
    "Dirichlet 0.1, 10 %": Setting(0.1, 9, 1, 5),
    "Dirichlet 0.1, 30 %": Setting(0.1, 7, 3, 5),
}


@dataclass
class Cell:
    """One attack on one federation, with one alignment.

    Args:
        accuracy: by inner strategy; None where it gave up the round.
        triggered: how often a trigger had its way, by inner strategy, where the attack has one.
        lost: honest replies that were set aside.
        caught: attackers' replies that were.
    """

    accuracy: dict[str, float | None] = field(default_factory=dict)
    triggered: dict[str, float | None] = field(default_factory=dict)
    lost: int = 0
    caught: int = 0


@dataclass(frozen=True)
class Federation:
    """The clients of one seed; attackers are somewhere among them, and not always in the same places.

    Args:
        clients: trained.
        setting: how many of them take part.
        seed: of the places.
    """

    clients: Clients
    setting: Setting
    seed: int

    @classmethod
    def trained(cls, setting: Setting, seed: int) -> Federation:
        """The clients of a seed, the same ones in every setting."""
        clients = train_clients(*TRAINED, WIDTH, EXAMPLES, STEPS, seed, setting.alpha)
        honest, dishonest = clients.honest[: setting.honest], clients.dishonest[: setting.attackers]
        return cls(replace(clients, honest=honest, dishonest=dishonest), setting, seed)

    def mixed(self, models: Sequence[State]) -> tuple[list[State], list[int]]:
        """The models in the order in which they are sent, and where each of these was before."""
        order = random.Random(self.seed).sample(range(len(models)), len(models))
        return [models[at] for at in order], order

    def caught(self, models: Sequence[State]) -> set[int]:
        """The positions of those that do not get past the alignment's rules."""
        sent, order = self.mixed(models)
        past = positions(handed_on(self.clients, sent))
        return {order[at] for at in range(len(sent)) if at not in past}

    @cached_property
    def insider(self) -> Insider:
        """Attackers who know what is caught."""
        return Insider(self.clients, self.caught)

    def sent(self, attack: str) -> list[State]:
        """The honest models, then the attackers'."""
        if attack == NONE:
            return list(self.clients.honest)
        if attack in ADAPTIVE:
            return [*self.clients.honest, *ADAPTIVE[attack](self.insider)]
        return [*self.clients.honest, *{**ATTACKS, **HIDDEN}[attack](self.clients)]

    def measure(self, attack: str, models: Sequence[State], alignment: str) -> Cell:
        """All inner strategies."""
        sent, order = self.mixed(models)
        clients, strategies, cell = self.clients, self.setting.strategies, Cell()
        if attack == NONE:
            strategies = robust(min(self.setting.attackers, (len(sent) - 3) // 4))
        elif 4 * self.setting.attackers + 3 > len(sent):  # as many as it can take
            strategies = {**strategies, "Bulyan": robust((len(sent) - 3) // 4)["Bulyan"]}
        if alignment == US:
            messages = handed_on(clients, sent)
            aside = [order[at] for at in range(len(sent)) if at not in positions(messages)]
            cell.lost = sum(at < len(clients.honest) for at in aside)
            cell.caught = len(aside) - cell.lost
            unscreened = handed_on(clients, sent, robust=False) if aside else messages
        else:
            found = aligned_beforehand(clients, WeightMatching(), sent) if alignment == BEFOREHAND else sent
            messages = unscreened = asked(clients, strategies["FedAvg"](), found)
        for name, make in strategies.items():
            taken = unscreened if name == "FedAvg" else messages
            state = aggregated(make(), taken, len(sent) - len(taken))
            cell.accuracy[name] = None if state is None else clients.accuracy(state)
            if "backdoor" in attack:
                cell.triggered[name] = None if state is None else clients.trigger_success(state)
        return cell
