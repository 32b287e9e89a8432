"""What a ClientApp adds so that the server can calibrate and merge without data: sums on request, and nothing else.

The server sends a model, or two, and the name of a statistic; the client answers with sums over its examples and their
number. No example, label, logit or activation leaves.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import WARNING
from typing import Any

from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedrebasin import Statistic, collect_sums
from fedrebasin.devices import move, pick_device
from fedrebasin.errors import one_line
from fedrebasin.registry import STATISTICS

from ..flower import log
from ..replies import RecordError, decode_record
from ..sums import ACTION, MODEL, STATISTIC, SUMS, encode_sums, read_max_examples, read_statistic

Batches = Iterable[Any]
CallNext = Callable[[Message, Context], Message]

REFUSED = 100  # an application's error code, apart from Flower's own


@dataclass(frozen=True)
class StatisticsMod:
    """A Flower mod that answers requests for sums and passes every other message on.

    Flower runs mods only around functions that the app has registered: where there is no query function, requests come
    as training messages, ``Aligned(..., query_type="train")``. :func:`register` needs neither.

    Args:
        model: makes the architecture for a context; the parameters come with each query.
        batches: makes the client's training batches, ``(inputs, labels)``, for a context.
        min_examples: refuse sums over fewer examples, which could give one of them away.
        device: where the sums are taken: ``"auto"`` takes the GPU where there is one; or what a context says.
        statistics: those that the client is willing to answer; None for all in ``fedrebasin.registry.STATISTICS``.

    Example: ``ClientApp(mods=[StatisticsMod(model=make_model, batches=train_batches)])``
    """

    model: Callable[[Context], nn.Module]
    batches: Callable[[Context], Batches]
    min_examples: int = 16
    device: str | Callable[[Context], str] = "auto"
    statistics: tuple[type[Statistic[Any]], ...] | None = None

    def __call__(self, message: Message, context: Context, call_next: CallNext) -> Message:
        """Answer the query, or hand the message on."""
        if not message.has_content() or STATISTIC not in message.content.config_records:
            return call_next(message, context)
        return self.answer(message, context)

    def answer(self, message: Message, context: Context) -> Message:
        """The sums that the message asks for, or an error reply that says why there are none."""
        try:
            return self._answer(message, context)
        except Exception as error:  # a question may be anything, and so may what a model makes of it
            why = one_line(error)
            log(WARNING, "no sums for the server: %s", why)
            return Message(Error(REFUSED, why), reply_to=message)

    def _answer(self, message: Message, context: Context) -> Message:
        device = pick_device(self.device(context) if callable(self.device) else self.device)
        known = STATISTICS.values() if self.statistics is None else self.statistics
        statistic = read_statistic(message.content, known, device)
        if MODEL not in message.content.array_records:
            raise RecordError(f"a query without {MODEL!r}")
        state = move(decode_record(message.content.array_records[MODEL]), device)
        model = self.model(context).to(device)
        enough = read_max_examples(message.content)
        sums = collect_sums(statistic, model, state, self.batches(context), self.min_examples, enough)
        examples = float(sums["examples"]) if sums else 0.0
        metrics = MetricRecord({"num-examples": examples})
        return Message(RecordDict({SUMS: encode_sums(sums), "metrics": metrics}), reply_to=message)


def register(
    app: ClientApp,
    *,
    model: Callable[[Context], nn.Module],
    batches: Callable[[Context], Batches],
    min_examples: int = 16,
    device: str | Callable[[Context], str] = "auto",
) -> None:
    """Let a ClientApp answer the server's requests for sums; whoever wrote the app.

    Args:
        app: the app to add the query handler to.
        model: see :class:`StatisticsMod`.
        batches: see :class:`StatisticsMod`.
        min_examples: see :class:`StatisticsMod`.
        device: see :class:`StatisticsMod`.
    """
    mod = StatisticsMod(model, batches, min_examples, device)
    app.query(ACTION)(mod.answer)
