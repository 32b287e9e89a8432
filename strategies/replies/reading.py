"""What a reply says: its model, its weight, and whatever else goes with it to the inner strategy."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from logging import INFO

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from ..traits import find_attribute, traits_of, weighted_by
from .alongside import alongside_in, model_in
from .errors import FormError, RecordError
from .records import Template, finite_sizes
from .reply import Reply
from .unknown import demand_sane
from .updates import Updates

MAX_EXAMPLES = 10**12


class Reader:
    """Reads the replies of a round; a strategy that takes models only, as Flower's own, gets nothing else.

    Args:
        template: the form of the global model.
        strategy: the inner strategy.
        updates: where clients send updates.
        say: is told once a run what users should know, by kind.
    """

    def __init__(
        self, template: Template, strategy: Strategy, updates: Updates | None, say: Callable[[str, int, str], None]
    ) -> None:
        self._template = template
        self._updates = updates
        self._say = say
        self._who = type(strategy).__name__
        self._usual = find_attribute(strategy, "arrayrecord_key", "arrays")
        self._weighted_by = weighted_by(strategy)
        self._loss_key = find_attribute(strategy, "train_loss_key", None)
        self.demands_form = traits_of(strategy).takes_models
        self.not_finite: Counter[str] = Counter()

    def read(self, message: Message) -> Reply:
        """A reply with its model; of its metrics only what is read here may refuse it.

        Raises:
            FormError: if it holds no model of the global one's form, or what the strategy cannot take.
            RecordError: if its numbers are not finite, or its weight cannot be one.
        """
        content = message.content
        arrays = dict(content.array_records)
        if self.demands_form:
            self._demand_one(arrays, "ArrayRecords")
            self._demand_one(content.metric_records, "MetricRecords")
        self._look_at(content.metric_records)
        num_examples = self._weight(content)
        name = model_in(arrays, self._template, self._usual) or next(iter(arrays), None)
        if name is None:
            raise FormError("0 ArrayRecords instead of one", "let clients send the model in an ArrayRecord")
        state, sizes = self._template.decode_with_sizes(arrays[name])
        if self._updates is not None:
            state = self._updates.model(message.metadata.src_node_id, state)
            sizes = finite_sizes(state)
        alongside = alongside_in(arrays, self._template, name)
        for other in arrays.keys() - {name, *alongside}:
            demand_sane(arrays[other])
            self._say(
                "record", INFO, f"records that do not lie along the model's units, as {other!r}, stay as they are"
            )
        return Reply(message, message.metadata.src_node_id, state, num_examples, sizes, name, alongside)

    def form_of(self, reply: Reply) -> object:
        """What has to be alike in all replies: what the model is called, for Flower's own all other names as well."""
        if not self.demands_form:
            return reply.record
        return reply.record, frozenset(
            (name, key, len(value) if isinstance(value, list) else -1)
            for name, metrics in reply.message.content.metric_records.items()
            for key, value in metrics.items()
        )

    def _demand_one(self, records: Mapping[str, ArrayRecord] | Mapping[str, MetricRecord], kind: str) -> None:
        if len(records) != 1:
            raise FormError(
                f"{len(records)} {kind} instead of one",
                f"{self._who} takes one; a strategy with an aggregate_train of its own may take others",
            )

    def _look_at(self, records: Mapping[str, MetricRecord]) -> None:
        """Count metrics that are not finite: whatever they are, they are no reason to lose the model."""
        for metrics in records.values():
            for key, value in metrics.items():
                numbers: Sequence[float] = value if isinstance(value, list) else [value]
                try:
                    finite = all(map(math.isfinite, numbers))
                except OverflowError:  # no strategy can multiply it
                    raise RecordError(f"metric {key!r} is an integer beyond every float") from None
                if not finite:
                    self.not_finite[key] += 1

    def _weight(self, content: RecordDict) -> float:
        found = [metrics for metrics in content.metric_records.values() if self._weighted_by in metrics]
        if not found and not self.demands_form:
            self._say("weight", INFO, f"replies say no {self._weighted_by!r}: for the alignment all count the same")
            return 1.0
        weight = found[0][self._weighted_by] if found else None
        if weight is None or isinstance(weight, list):
            raise FormError(
                f"metric {self._weighted_by!r} is not a number",
                f"let clients send it in their MetricRecord, or give {self._who} the weighted_by_key of another metric",
            )
        if not 0 < weight <= MAX_EXAMPLES:
            raise RecordError(
                f"metric {self._weighted_by!r} is {weight}: it must be above 0 and at most {MAX_EXAMPLES}"
            )
        if self._loss_key is not None:
            loss = found[0].get(self._loss_key)
            if loss is None or isinstance(loss, list) or not 0 <= loss < math.inf:
                raise RecordError(f"metric {self._loss_key!r} is not a loss")
        return float(weight)
