"""AlignMod: the client aligns its new model to the global one that it received, before anything leaves it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedrebasin import AlignTo, Matcher, PermutationSpec, RebasinError, WeightMatching
from fedrebasin.devices import move, pick_device
from fedrebasin.errors import choose

from ..replies import RecordError, Template, Updates, alongside_in, carrying, model_in, permuted_record, to_state

#: The name of the record that holds the model, where there are several.
MODEL = "arrays"

#: Where a strategy writes the norm that its clients are to clip to, and clipping mods read it.
CLIPPING_NORM = "clipping_norm"

CallNext = Callable[[Message, Context], Message]


@dataclass(frozen=True)
class AlignMod:
    """A Flower mod for training messages; every other message passes.

    The server sees aligned models only, so that secure aggregation, clipping and any strategy work on them unchanged.
    For the same reference the aggregate is that of server-side alignment. The global model must be one to align to:
    a shared start or a published model, never one that no client started from.

    With client-side clipping put it inside, ``@app.train(mods=[fixedclipping_mod, AlignMod(spec)])``, so that the
    clipped update is the aligned one: what is inside of this mod does not get the clipping norm. Under secure
    aggregation, whose arrays carry numbers for names, arrays are paired with the spec's keys by position.

    Args:
        spec: the permutation spec of the model; of a part that is sent, ``spec.restrict(keys)``.
        matcher: how the new model is matched to the received one.
        device: where; ``"auto"`` takes the GPU where there is one.
        sends: what the client sends, its ``"model"`` or its ``"update"``, see :class:`fedrebasin.strategies.Aligned`.
    """

    spec: PermutationSpec
    matcher: Matcher = field(default_factory=WeightMatching)
    device: str = "auto"
    sends: Literal["model", "update"] = "model"

    def __post_init__(self) -> None:
        choose("sends", self.sends, ("model", "update"))

    def __call__(self, message: Message, context: Context, call_next: CallNext) -> Message:
        """Let the client train, then align what it replies: its model, and what lies along the model's units.

        The model is the ArrayRecord called ``"arrays"``, or the only one.

        Raises:
            RecordError: if the message or the reply does not carry one model of the spec's keys.
            RebasinError: if a clipping mod is inside.
        """
        if message.metadata.message_type.split(".")[0] != "train" or not message.has_content():
            return call_next(message, context)
        records = message.content.array_records
        record = next(iter(records.values())) if len(records) == 1 else records.get(MODEL)
        received = None if record is None else _declared(record)
        reply = call_next(_without_norm(message), context)
        if reply.has_error() and CLIPPING_NORM in (reply.error.reason or ""):
            raise RebasinError(
                "AlignMod around a clipping mod: an update that was clipped would be permuted afterwards, and could be "
                f"longer than the clipping norm again: mods=[CLIPPING_MOD, AlignMod(spec)] ({reply.error.reason})"
            )
        if reply.has_error() or received is None or not reply.content.array_records:
            return reply
        return carrying(reply, self._aligned(received, dict(reply.content.array_records)))

    def _aligned(self, received: ArrayRecord, replied: Mapping[str, ArrayRecord]) -> dict[str, ArrayRecord]:
        template = Template.of(received)
        spec = self.spec.rename_like(template.empty())
        if missing := [key for key in spec.shapes if key not in received]:
            raise RecordError(
                f"the message carries {len(received)} arrays where the spec has {len(spec.shapes)} ({missing[0]!r} and "
                "others are not among them): if these stay here, AlignMod(spec.restrict(keys)) with the keys that are "
                "sent; else neither names nor positions tell which is which"
            )
        declared = {name: _declared(record) for name, record in replied.items()}
        name = model_in(declared, template, MODEL) or (MODEL if MODEL in declared else next(iter(declared)))
        trained = template.decode(declared[name])
        updates = Updates(template, {}, received, {}) if self.sends == "update" else None
        device = pick_device(self.device)
        reference = move(to_state(received), device)
        candidate = move(trained if updates is None else updates.model(0, trained), device)
        alignment = AlignTo(self.matcher, reference=reference).begin(spec).place(candidate)
        assert alignment is not None
        aligned = alignment.apply(candidate)
        encoded = template.encode(aligned if updates is None else updates.update(0, aligned))
        found = {
            other: permuted_record(alignment.permutation, replied[other], part)
            for other, part in alongside_in(declared, template, name).items()
        }
        # The keys and their order are the client's own: clipping and secure aggregation pair arrays by them.
        return {**found, name: ArrayRecord({key: encoded[key] for key in replied[name]})}


def _without_norm(message: Message) -> Message:
    """The message without the clipping norm: a mod that clips has read it outside of this one, or cannot clip."""
    configs = {name: config for name, config in message.content.config_records.items() if CLIPPING_NORM in config}
    if not configs:
        return message
    twin = copy.copy(message)
    twin.content = RecordDict(dict(message.content))
    for name, config in configs.items():
        twin.content[name] = ConfigRecord({key: value for key, value in config.items() if key != CLIPPING_NORM})
    return twin


def _declared(record: ArrayRecord) -> ArrayRecord:
    """A copy whose arrays say what they are: Flower's legacy workflow leaves that to the bytes."""
    return ArrayRecord({key: array if array.dtype else Array(array.numpy()) for key, array in record.items()})
