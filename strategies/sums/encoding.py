"""How statistics and their sums travel: a ConfigRecord says what to sum, an ArrayRecord holds the sums."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedrebasin.devices import move
from fedrebasin.sums import Moments, Statistic

from ..replies import FLOATS, RecordError, decode_array, decode_record, own_form

ACTION = "fedrebasin"
QUERY = f"query.{ACTION}"
MODEL = "arrays"
STATISTIC = "statistic"
SUMS = "sums"
ENOUGH = "max-examples"  # beside the settings: how many examples are enough
SETTING = "set-"
MOMENTS = "/"  # in a key of moments by name, before the name of the part
MAX_NAME = 200


def describe_statistic(
    statistic: Statistic[Any], max_examples: int | None = None
) -> dict[str, ConfigRecord | ArrayRecord]:
    """The records that name a statistic and its settings.

    Numbers, strings and tuples of them go into a ConfigRecord; a state dict, or moments by name, into an ArrayRecord.

    Args:
        statistic: a dataclass.
        max_examples: how many examples are enough; None for all.

    Raises:
        RecordError: if a setting is something else, or the statistic is not a dataclass.
    """
    if not dataclasses.is_dataclass(statistic):
        raise RecordError(f"{type(statistic).__name__} is not a dataclass, so that its settings cannot be sent")
    config = ConfigRecord({"name": statistic.name})
    if max_examples is not None:
        config[ENOUGH] = max_examples
    records: dict[str, ConfigRecord | ArrayRecord] = {STATISTIC: config}
    for field in dataclasses.fields(statistic):
        value = getattr(statistic, field.name)
        if isinstance(value, Mapping):
            records[SETTING + field.name] = encode_sums(_flat(value))
        elif isinstance(value, tuple | list):
            config[SETTING + field.name] = list(value)
        elif isinstance(value, bool | int | float | str):
            config[SETTING + field.name] = value
        elif value is not None:
            raise RecordError(f"{statistic.name}: {field.name} of type {type(value).__name__} cannot be sent")
    return records


def read_statistic(content: RecordDict, known: Iterable[type[Statistic[Any]]], device: torch.device) -> Statistic[Any]:
    """The statistic that :func:`describe_statistic` described.

    Raises:
        RecordError: if it is not known or its settings are not its own.
    """
    by_name: Mapping[str, type[Statistic[Any]]] = {str(kind.name): kind for kind in known}
    config = content.config_records.get(STATISTIC, ConfigRecord())
    name = config.get("name")
    if not isinstance(name, str) or name not in by_name:
        raise RecordError(f"no statistic {name!r}; there are {', '.join(sorted(by_name))}")
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if key.startswith(SETTING):
            settings[key.removeprefix(SETTING)] = tuple(value) if isinstance(value, list) else value
    for key, record in content.array_records.items():
        if key.startswith(SETTING):
            settings[key.removeprefix(SETTING)] = _nested(move(decode_record(record), device))
    try:
        return by_name[name](**settings)
    except (TypeError, ValueError) as error:
        raise RecordError(f"statistic {name!r}: {error}") from None


def read_max_examples(content: RecordDict) -> int | None:
    """How many examples are enough for a request; None for all.

    Raises:
        RecordError: if it is no number of examples.
    """
    found = content.config_records[STATISTIC].get(ENOUGH)
    if found is not None and (not isinstance(found, int) or found < 1):
        raise RecordError(f"{ENOUGH} {found!r} is no number of examples")
    return found


def _flat(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name as they are; moments as three tensors each."""
    flat: dict[str, Tensor] = {}
    for key, value in values.items():
        if isinstance(value, Moments):
            flat[key + MOMENTS + "count"] = torch.tensor(value.count, dtype=torch.float64)
            flat[key + MOMENTS + "mean"] = value.mean
            flat[key + MOMENTS + "variance"] = value.variance
        else:
            flat[key] = value
    return flat


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    nested: dict[str, Any] = {key: tensor for key, tensor in flat.items() if MOMENTS not in key}
    for key in dict.fromkeys(key.partition(MOMENTS)[0] for key in flat if MOMENTS in key):
        try:
            count, mean, variance = (flat[f"{key}{MOMENTS}{part}"] for part in ("count", "mean", "variance"))
        except KeyError:
            raise RecordError(f"{key}: moments are a count, a mean and a variance") from None
        nested[key] = Moments(float(count), mean, variance)
    return nested


def encode_sums(sums: Mapping[str, Tensor]) -> ArrayRecord:
    """Sums as arrays, in the dtype that they have."""
    return ArrayRecord(
        {key: Array(np.asarray(tensor.detach().cpu().numpy(), order="C")) for key, tensor in sums.items()}
    )


def decode_sums(record: ArrayRecord, max_bytes: int) -> dict[str, Tensor]:
    """Sums from a stranger: floats only, finite, no larger in memory than the bytes that came.

    Args:
        record: what the client sent.
        max_bytes: refuse more than this.

    Raises:
        RecordError: naming the entry.
    """
    size = sum(len(array.data) for array in record.values())
    if size > max_bytes:
        raise RecordError(f"{size} bytes of sums where at most {max_bytes} are expected")
    sums: dict[str, Tensor] = {}
    for key, array in record.items():
        if len(key) > MAX_NAME:
            raise RecordError(f"a name of {len(key)} characters")
        sums[key] = decode_array(key, array, own_form(key, array, FLOATS))
    return sums
