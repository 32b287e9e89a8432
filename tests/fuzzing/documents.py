"""Messages as documents, so that they can be kept in files and changed like any other: arrays as hexadecimal text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from tests.fuzzing.engine import CannotTravel

KINDS = {"arrays": ArrayRecord, "metrics": MetricRecord, "configs": ConfigRecord}


def document_of(content: RecordDict) -> dict[str, Any]:
    """The records of a message, by kind and name."""
    return {
        "arrays": {
            name: {
                key: {"dtype": a.dtype, "shape": list(a.shape), "stype": a.stype, "data": a.data.hex()}
                for key, a in record.items()
            }
            for name, record in content.array_records.items()
        },
        "metrics": {name: dict(record) for name, record in content.metric_records.items()},
        "configs": {name: dict(record) for name, record in content.config_records.items()},
    }


def content_of(document: Any) -> RecordDict:
    """The records that a document describes.

    Raises:
        CannotTravel: if Flower's own types refuse it.
    """
    try:
        arrays = {name: ArrayRecord(_arrays(record)) for name, record in document["arrays"].items()}
        metrics = {name: MetricRecord(dict(record)) for name, record in document["metrics"].items()}
        configs = {name: ConfigRecord(dict(record)) for name, record in document["configs"].items()}
        return RecordDict({**arrays, **metrics, **configs})
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CannotTravel from error


def parsed(data: bytes) -> Any:
    """The document in a text.

    Raises:
        CannotTravel: if there is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CannotTravel from error


def _arrays(record: Mapping[str, Any]) -> dict[str, Array]:
    found = {}
    for key, entry in record.items():
        shape = tuple(entry["shape"])
        if not all(type(size) is int and -(2**31) <= size < 2**31 for size in shape):
            raise TypeError("a shape of other than 32-bit integers")
        if not all(isinstance(entry[name], str) for name in ("dtype", "stype")):
            raise TypeError("not a text")
        found[key] = Array(dtype=entry["dtype"], shape=shape, stype=entry["stype"], data=bytes.fromhex(entry["data"]))
    return found
