"""Frames: one permutation for each node and a whole run, so that each keeps working in its own coordinates.

Simultaneous connectivity, section 5.1: networks trained from different initialisations can be aligned by one and the
same permutation throughout training. A node's permutation is found once; from then on it receives the global model in
its own order of units, its optimiser state and local layers keep their meaning, and its replies are mapped back.
"""

from dataclasses import dataclass, field

from flwr.app import Message

from fedrebasin import Permutation

from ..replies import Template, carrying, names_along, permuted_record, to_state


@dataclass
class Frames:
    """The permutations by node: each maps the node's coordinates to the server's.

    They belong to one run: the next one begins with those that were given.

    Args:
        rematch_every: match again in every round that this divides; 0 for never.
        rematch_below: match a node again when the cosine between its mapped reply and the global model falls below
            this; None for never.
        by_node: what is known beforehand, and then what was learnt.
    """

    rematch_every: int = 0
    rematch_below: float | None = None
    by_node: dict[int, Permutation] = field(default_factory=dict)
    _agreed: int = field(default=0, repr=False)
    _compared: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self._given = dict(self.by_node)

    def forget(self) -> None:
        """Go back to the permutations that were given."""
        self.by_node = dict(self._given)
        self._agreed = self._compared = 0

    def known(self, node_id: int, server_round: int) -> Permutation | None:
        """The node's permutation, None if it has to be found (again)."""
        if self.rematch_every and server_round % self.rematch_every == 0:
            return None
        return self.by_node.get(node_id)

    def learn(self, node_id: int, permutation: Permutation) -> None:
        """Keep a node's permutation."""
        before = self.by_node.get(node_id)
        if before is not None and permutation is not before:
            self._agreed += sum(permutation.fixed_points(before).values())
            self._compared += sum(index.numel() for index in permutation.values())
        self.by_node[node_id] = permutation

    def fixed_points(self) -> float:
        """The share of units on which new permutations agree with their nodes' last ones, since last asked.

        1 where there were no new ones (Simultaneous connectivity, section 5.1).
        """
        share = self._agreed / self._compared if self._compared else 1.0
        self._agreed = self._compared = 0
        return share

    def outgoing(self, messages: list[Message], template: Template) -> list[Message]:
        """The messages, each with what it carries along the model's units in the coordinates of its node."""
        sent = []
        for message in messages:
            permutation = self.by_node.get(message.metadata.dst_node_id)
            if permutation is None or permutation.is_identity:
                sent.append(message)
                continue
            back, own = permutation.inverse(), {}
            for name, record in message.content.array_records.items():
                if names := names_along(record, template):
                    part = {names[key]: tensor for key, tensor in to_state(record).items()}
                    own[name] = permuted_record(back, record, part)
            sent.append(carrying(message, own))
        return sent
