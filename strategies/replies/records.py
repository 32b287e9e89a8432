"""ArrayRecord <-> state dict: decoded without trust, encoded in the global key order and dtypes.

A reply is a stranger's bytes. Everything about it is compared with the global model before memory is allocated: keys,
declared shape and dtype, the length of the buffer, and the header inside the buffer (which numpy would otherwise
believe). Only then are the numbers looked at, and all of them must be finite.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedrebasin.errors import some
from fedrebasin.keys import likely_rename

from .errors import FormError, RecordError
from .header import MAGIC, MAX_HEADER, parsed_header, usual_header

with warnings.catch_warnings():  # torch warns once that such memory must not be written to: nothing here does
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(4), dtype=np.float32))

NUMPY = "numpy.ndarray"
FLOATS = ("float16", "float32", "float64")
NUMBERS = (*FLOATS, "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
MAX_DIMS, MAX_ELEMENTS = 32, 2**48  # of an array that says its form itself: numpy and torch go no further, or little


@dataclass(frozen=True)
class Form:
    """The dtype and shape of one array of the global model."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether the array holds floating point numbers."""
        return self.dtype.kind == "f"

    @cached_property
    def name(self) -> str:
        """Of the dtype; numpy works it out anew each time."""
        return str(self.dtype)


@dataclass(frozen=True)
class Template:
    """What every reply has to look like: the forms of the global arrays, in their order."""

    forms: Mapping[str, Form]

    @staticmethod
    def of(arrays: ArrayRecord) -> Template:
        """The template of a global model, which is trusted.

        Raises:
            RecordError: if an array has a dtype that is no number (objects, strings, complex numbers).
        """
        forms = {}
        for key, array in arrays.items():
            try:
                dtype = np.dtype(array.dtype)
            except TypeError:  # what only its own stype knows, as bfloat16
                dtype = np.dtype(object)
            if dtype.kind not in "fiub":
                raise RecordError(f"{key}: dtype {array.dtype} of the global model cannot be merged")
            forms[key] = Form(dtype, tuple(array.shape))
        return Template(forms)

    def fits(self, record: ArrayRecord) -> bool:
        """Whether a record says that it has these keys and shapes."""
        return len(record) == len(self.forms) and all(
            key in self.forms and tuple(array.shape) == self.forms[key].shape for key, array in record.items()
        )

    @property
    def nbytes(self) -> int:
        """The size of the model in bytes."""
        return sum(math.prod(form.shape) * form.dtype.itemsize for form in self.forms.values())

    def empty(self) -> dict[str, Tensor]:
        """A state dict of this form without numbers, to check a spec against."""
        return {
            key: torch.empty(form.shape, dtype=getattr(torch, form.name), device="meta")
            for key, form in self.forms.items()
        }

    def decode(self, record: ArrayRecord) -> dict[str, Tensor]:
        """The state dict in a record from a client, in the global key order and dtypes, on the CPU.

        Floats of another precision are cast; integers must be integers of a size that holds them.

        The tensors share the record's memory where they can, and must not be written to.

        Raises:
            RecordError: naming what differs from the template, or what is not finite. Nothing larger than the
                template is allocated.
        """
        return self.decode_with_sizes(record)[0]

    def decode_with_sizes(self, record: ArrayRecord) -> tuple[dict[str, Tensor], dict[str, float]]:
        """As :meth:`decode`, and how large the floats are, which is known once they are found to be finite."""
        missing = [key for key in self.forms if key not in record]
        extra = [key for key in record if key not in self.forms]
        if missing or extra:
            parts = [f"misses {_some(missing)}"] * bool(missing) + [f"adds {_some(extra)}"] * bool(extra)
            hint = f": {likely}" if missing and (likely := likely_rename(list(self.forms), list(record))) else ""
            raise FormError(f"the record {' and '.join(parts)}{hint}", "let clients send the arrays that they get")
        state = {key: _numbers(key, record[key], form) for key, form in self.forms.items()}
        return state, finite_sizes(state)

    def encode(self, state: Mapping[str, Tensor]) -> ArrayRecord:
        """A record of the state dict in the global key order and dtypes (integers rounded)."""
        return ArrayRecord(
            {key: Array(_cast(state[key].detach().cpu().numpy(), form)) for key, form in self.forms.items()}
        )

    def encode_mean(self, mean: Mapping[str, Tensor]) -> ArrayRecord:
        """A record as a Flower strategy's mean would be: floats in the global precision, integers as floats."""
        forms = {
            key: form if form.is_float else Form(np.dtype("float64"), form.shape) for key, form in self.forms.items()
        }
        return ArrayRecord({key: Array(_cast(mean[key].cpu().numpy(), form)) for key, form in forms.items()})

    def restore(self, aggregate: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        """The state dict of an aggregate, in the global key order and dtypes, on the CPU.

        Means of integers are rounded: Flower turns integers into float64, and FedAdam everything.

        Raises:
            FormError: if the aggregate has other keys or shapes.
            RecordError: if it is not finite.
        """
        if missing := [key for key in self.forms if key not in aggregate]:
            raise FormError(f"the aggregate misses {_some(missing)} of the global model")
        restored = {}
        for key, form in self.forms.items():
            found = aggregate[key]
            values = (found.detach().cpu() if isinstance(found, Tensor) else found).numpy()
            if values.shape != form.shape:
                raise FormError(f"{key}: the aggregate has shape {values.shape} instead of {form.shape}")
            values = _cast(values, form) if form.is_float else values
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RecordError(f"{key}: the aggregate is not finite")
            restored[key] = torch.from_numpy(_cast(values, form))
        return restored


def to_state(arrays: ArrayRecord) -> dict[str, Tensor]:
    """The state dict in a trusted record, on the CPU."""
    return {key: torch.from_numpy(array.numpy()) for key, array in arrays.items()}


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, float]:
    """The root mean square of each tensor of floats, roughly: in float32 it may overflow, and is absurd then."""
    return {key: _size(tensor) for key, tensor in state.items() if tensor.is_floating_point() and tensor.numel()}


def own_form(key: str, array: Array, dtypes: Collection[str] = NUMBERS) -> Form:
    """The form that an array from somebody else says it has, if there can be such an array.

    Raises:
        RecordError: if it is of another dtype than these, or no array has such a shape.
    """
    if array.dtype not in dtypes:
        raise RecordError(f"{key}: dtype {array.dtype} instead of one of {', '.join(dtypes)}")
    demand_shape(key, shape := tuple(array.shape))
    return Form(np.dtype(array.dtype), shape)


def demand_shape(key: str, shape: tuple[int, ...]) -> None:
    """Refuse what is the shape of no array, however few numbers it holds.

    Raises:
        RecordError: naming it.
    """
    if len(shape) > MAX_DIMS or min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise RecordError(f"{key}: no array has the shape {shape}")


def decode_record(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors in a record from somebody else, of whatever forms: numbers, finite, no more bytes than came.

    Raises:
        RecordError: naming the entry.
    """
    return {key: decode_array(key, array, own_form(key, array)) for key, array in record.items()}


def decode_array(key: str, array: Array, form: Form) -> Tensor:
    """The tensor in an array from a client, if it has this form and is finite.

    Raises:
        RecordError: naming what differs. Nothing is allocated before the number of bytes is known to be right.
    """
    tensor = _numbers(key, array, form)
    finite_sizes({key: tensor})
    return tensor


def _numbers(key: str, array: Array, form: Form) -> Tensor:
    """The tensor in an array of this form; whether its numbers are finite is not looked at."""
    if array.stype != NUMPY:
        raise RecordError(f"{key}: serialised as {array.stype!r} instead of {NUMPY!r}")
    if tuple(array.shape) != form.shape:
        raise FormError(
            f"{key}: shape {tuple(array.shape)} instead of {form.shape}",
            "only a strategy that understands parts of models takes them, behind aligner=Identity()",
        )
    dtype = _accepted_dtype(key, array.dtype, form)
    size = math.prod(form.shape) * dtype.itemsize
    if not size <= len(array.data) <= size + MAGIC + MAX_HEADER:
        raise RecordError(f"{key}: {len(array.data)} bytes for shape {form.shape} of {dtype}")
    usual = usual_header(dtype, form.shape)
    if array.data[: len(usual)] == usual:  # as numpy writes it: nothing to parse
        start, fortran_order = len(usual), False
    else:
        start, fortran_order, shape, actual = parsed_header(key, array.data)
        if shape != form.shape or actual != dtype:
            raise RecordError(f"{key}: the bytes hold {shape} of {actual} where {form.shape} of {dtype} was declared")
    if len(array.data) - start != size:
        raise RecordError(f"{key}: {len(array.data) - start} bytes of numbers instead of {size}")
    flat = np.frombuffer(array.data, dtype=dtype, offset=start)
    values = flat.reshape(form.shape, order="F" if fortran_order else "C")
    return torch.from_numpy(_cast(values, form))


def _accepted_dtype(key: str, declared: str, form: Form) -> np.dtype[Any]:
    """The dtype of a reply's array, if it can stand for the template's."""
    if declared == form.name:
        return form.dtype
    if form.is_float and declared in FLOATS:
        return np.dtype(declared)
    raise FormError(f"{key}: dtype {declared} instead of {form.dtype}", "let clients send the dtypes that they get")


def finite_sizes(state: Mapping[str, Tensor]) -> dict[str, float]:
    """The sizes of tensors that are all finite: one pass finds both, as what is not finite has no finite size.

    Raises:
        RecordError: naming one that is not.
    """
    sizes = sizes_of(state)
    for key, size in sizes.items():
        if not (math.isfinite(size) or all(map(math.isfinite, torch.aminmax(state[key])))):
            raise RecordError(f"{key}: not finite")
    return sizes


def _size(tensor: Tensor) -> float:
    flat = (tensor.float() if tensor.itemsize < 4 else tensor).flatten()
    return math.sqrt(float(torch.dot(flat, flat)) / len(flat))


def _cast(values: np.ndarray[Any, Any], form: Form) -> np.ndarray[Any, Any]:
    # A 0-d array must stay one, and a transposed view must not travel as Fortran order.
    if values.dtype == form.dtype:
        return np.asarray(values, order="C")
    with np.errstate(over="ignore"):
        return np.asarray(np.rint(values) if form.dtype.kind in "iub" else values, dtype=form.dtype, order="C")


def _some(keys: list[str]) -> str:
    return some([repr(key) for key in keys], 5)
