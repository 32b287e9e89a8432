"""The ArrayRecords of a message: which of them is the model, and which lie along its units as the model does."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

from fedrebasin import Permutation, SpecError
from fedrebasin.keys import pair
from fedrebasin.merging import permuted
from fedrebasin.state import State

from .records import Template, own_form


def model_in(records: Mapping[str, ArrayRecord], template: Template, usual: str) -> str | None:
    """The name of the record that has the global model's keys and shapes; None if there is none.

    Args:
        records: of a message, by name.
        template: of the global model.
        usual: the name that it has where several would do; else it is the first.
    """
    ordered = sorted(records, key=lambda name: name != usual)
    return next((name for name in ordered if template.fits(records[name])), None)


def names_along(record: ArrayRecord, template: Template) -> dict[str, str]:
    """The model's key of each array, where all of them are tensors of the model by key and shape, or by position.

    Returns:
        nothing where they are not: nobody can say along which units such arrays lie.
    """
    try:
        pairs = pair(list(template.forms), list(record)) or {}
    except SpecError:
        return {}
    names = {key: name for name, key in pairs.items()}
    fits = all(key in names and tuple(record[key].shape) == template.forms[names[key]].shape for key in record)
    return {key: names[key] for key in record} if fits else {}


def alongside_in(records: Mapping[str, ArrayRecord], template: Template, model: str) -> dict[str, State]:
    """The records other than the model that lie along its units, under the model's keys, in their own dtypes.

    Raises:
        RecordError: if an array of theirs is not what it says, or not finite.
    """
    found: dict[str, State] = {}
    for name, record in records.items():
        if name != model and (names := names_along(record, template)):
            own = Template({key: own_form(key, record[key]) for key in record})
            found[name] = {names[key]: tensor for key, tensor in own.decode(record).items()}
    return found


def permuted_record(permutation: Permutation, record: ArrayRecord, part: State) -> ArrayRecord:
    """A record with its tensors moved as the model's are, in its own keys, order and dtypes.

    Args:
        permutation: of the model.
        record: as it came.
        part: its tensors, under the model's keys, in its order.
    """
    arrays = (permuted(permutation, key, tensor).numpy() for key, tensor in part.items())
    return ArrayRecord({key: Array(np.asarray(each, order="C")) for key, each in zip(record, arrays, strict=True)})
