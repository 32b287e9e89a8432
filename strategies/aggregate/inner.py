"""The inner strategy's part of a round: what it is handed, and how it is asked."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from logging import ERROR
from typing import NoReturn

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedrebasin import Merge, RebasinError
from fedrebasin.errors import reason
from fedrebasin.state import State

from ..flower import log
from ..replies import (
    FormError,
    RecordError,
    Reply,
    Template,
    Updates,
    carrying,
    containing,
    demand_model,
    permuted_record,
)
from ..traits import expecting_fewer

Made = Mapping[str, Array | Tensor] | None  # an aggregate, before it has the global dtypes


def ask(
    strategy: Strategy,
    server_round: int,
    messages: Sequence[Message],
    already: int,
    set_aside: Callable[[int, str], None],
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """What the strategy makes of messages; where it fails and some are not of most's form, of those that are.

    Args:
        strategy: the inner one.
        server_round: Flower's round.
        messages: replies and errors.
        already: replies that were set aside before.
        set_aside: is told of the others, by node and reason.
    """
    with expecting_fewer(strategy, already, sum(not message.has_error() for message in messages)):
        try:
            return strategy.aggregate_train(server_round, list(messages))
        except Exception as error:
            forms = [None if message.has_error() else _form(message.content) for message in messages]
            counted = Counter(form for form in forms if form is not None)
            usual, count = counted.most_common(1)[0] if counted else (None, 0)
            if not counted.total() / 2 < count < counted.total():  # nobody can say whose form is to blame
                raise
            why = reason(error)
        for message, form in zip(messages, forms, strict=True):
            if form not in (None, usual):
                set_aside(message.metadata.src_node_id, f"its records are of another form than most replies' ({why})")
        kept = [message for message, form in zip(messages, forms, strict=True) if form in (None, usual)]
        return strategy.aggregate_train(server_round, kept)


def handed_on(
    replies: Sequence[Reply], merge: Merge | None, template: Template, floats_only: bool, updates: Updates | None
) -> list[Message]:
    """The replies as the inner strategy gets them: aligned, in the global key order, what else they carry as it came.

    ArrayRecords that lie along the model's units move as the model does; an update is one again.

    Args:
        replies: those that take part.
        merge: their models, aligned, and how; None where they stay as they are.
        template: of the global model.
        floats_only: whether the strategy can take no integers.
        updates: where clients send updates.
    """
    kinds = "biu" if floats_only else "b"  # numpy subtracts no bools
    as_floats = [key for key, form in template.forms.items() if form.dtype.kind in kinds]
    messages = []
    for position, reply in enumerate(replies):
        others: dict[str, ArrayRecord] = {}
        if merge is None:
            arrays = reply.arrays(template)
        else:
            state = merge.states[position]
            arrays = template.encode(dict(state if updates is None else updates.update(reply.node_id, state)))
            permutation, content = merge.alignments[position].permutation, reply.message.content
            if not permutation.is_identity:
                for name, part in reply.alongside.items():
                    others[name] = permuted_record(permutation, content.array_records[name], part)
        if as_floats:
            floats = {key: Array(arrays[key].numpy().astype(float)) for key in as_floats}
            arrays = ArrayRecord({**arrays, **floats})
        messages.append(carrying(reply.message, {**others, reply.record: arrays}))
    return messages


def restored(
    made: Made,
    integers: State,
    template: Template,
    server_round: int,
    strategy: Strategy,
    before: State | None,
) -> State | None:
    """An aggregate in the global dtypes; None if it is no model of the global one's form, or not finite.

    Args:
        made: the aggregate, as the inner strategy made it.
        integers: that the replies agree on, which count instead.
        template: of the global model.
        server_round: Flower's round.
        strategy: the inner one, for messages.
        before: the model that was sent out, where clients send updates of it.

    Raises:
        FormError: in the first round, if it is of another form, or an update.
    """
    try:
        state = None if made is None else template.restore({**made, **integers})
        if state is not None and before is not None:
            demand_model(state, before, type(strategy).__name__)
        return state
    except RecordError as error:
        if isinstance(error, FormError) and server_round == 1:
            raise
        log(ERROR, "aggregate_train: %s; the last good global model is kept", error)
        return None


def share_another_form(messages: Sequence[Message], template: Template) -> bool:
    """Whether all replies that are no errors carry one ArrayRecord of the same keys and shapes, but not the model's."""
    records = [list(message.content.array_records.values()) for message in messages if not message.has_error()]
    if not records or any(len(each) != 1 or template.fits(each[0]) for each in records):
        return False
    forms = {frozenset((key, tuple(array.shape)) for key, array in each[0].items()) for each in records}
    return len(forms) == 1


class LetGo(ArrayRecord):
    """Stands for arrays that are in a mean already: whoever reads them is told so, and takes them for none."""

    def _refuse(self, *_: object) -> NoReturn:
        raise RebasinError(
            "the arrays of this reply are in the mean already and were let go of: if train_metrics_aggr_fn or a probe "
            "reads them, say needs_all = True on the strategy"
        )

    __getitem__ = __iter__ = __len__ = __contains__ = keys = values = items = get = _refuse


def without_arrays(reply: Reply) -> Reply:
    """What is kept of a reply that was folded in: its node and its metrics."""
    content = RecordDict(
        {name: LetGo() if isinstance(record, ArrayRecord) else record for name, record in reply.message.content.items()}
    )
    return replace(reply, message=containing(reply.message, content), state={}, alongside={})


def _form(content: RecordDict) -> object:
    """Names of records and what is in them, shapes of arrays and lengths of lists."""
    return frozenset(
        (name, type(record), frozenset((key, _size(value)) for key, value in record.items()))
        for name, record in content.items()
    )


def _size(value: object) -> object:
    if isinstance(value, Array):
        return tuple(value.shape)
    return len(value) if isinstance(value, list) else None
