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
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from torch import Tensor

from fedrebasin.errors import RebasinError

with warnings.catch_warnings():  # torch warns once that such memory must not be written to: nothing here does
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(4), dtype=np.float32))

NUMPY = "numpy.ndarray"
MAX_HEADER = 10_000  # numpy's own limit; its header parser is not meant for longer ones
MAGIC = 16  # bytes before the header's text, at most
FLOATS = ("float16", "float32", "float64")
NUMBERS = (*FLOATS, "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
MAX_DIMS, MAX_ELEMENTS = 32, 2**48  # of an array that says its form itself: numpy and torch go no further, or little


class RecordError(RebasinError):
    """An ArrayRecord is not a model of the expected form."""


@dataclass(frozen=True)
class Form:
    """The dtype and shape of one array of the global model."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether the array holds floating point numbers."""
        return self.dtype.kind == "f"


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
            dtype = np.dtype(array.dtype)
            if dtype.kind not in "fiub":
                raise RecordError(f"{key}: dtype {array.dtype} of the global model cannot be merged")
            forms[key] = Form(dtype, tuple(array.shape))
        return Template(forms)

    @property
    def nbytes(self) -> int:
        """The size of the model in bytes."""
        return sum(math.prod(form.shape) * form.dtype.itemsize for form in self.forms.values())

    def empty(self) -> dict[str, Tensor]:
        """A state dict of this form without numbers, to check a spec against."""
        return {
            key: torch.empty(form.shape, dtype=getattr(torch, str(form.dtype)), device="meta")
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
        missing = [key for key in self.forms if key not in record]
        extra = [key for key in record if key not in self.forms]
        if missing or extra:
            parts = [f"misses {_some(missing)}"] * bool(missing) + [f"adds {_some(extra)}"] * bool(extra)
            raise RecordError(f"the record {' and '.join(parts)}")
        return {key: decode_array(key, record[key], form) for key, form in self.forms.items()}

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

    def restore(self, record: ArrayRecord) -> ArrayRecord:
        """The aggregate of a Flower strategy with the global dtypes restored; arrays that have them are not touched.

        Flower turns integers into float64, and FedAdam everything.

        Raises:
            RecordError: if the aggregate is not finite.
        """
        restored = {}
        for key, form in self.forms.items():
            array = record[key]
            values = array.numpy()
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise RecordError(f"{key}: the aggregate is not finite")
            restored[key] = array if values.dtype == form.dtype else Array(_cast(values, form))
        return ArrayRecord(restored)


def to_state(arrays: ArrayRecord) -> dict[str, Tensor]:
    """The state dict in a trusted record, on the CPU."""
    return {key: torch.from_numpy(np.array(array.numpy(), copy=True)) for key, array in arrays.items()}


def own_form(key: str, array: Array, dtypes: Collection[str] = NUMBERS) -> Form:
    """The form that an array from somebody else says it has, if there can be such an array.

    Raises:
        RecordError: if it is of another dtype than these, or no array has such a shape.
    """
    if array.dtype not in dtypes:
        raise RecordError(f"{key}: dtype {array.dtype} instead of one of {', '.join(dtypes)}")
    shape = tuple(array.shape)
    if len(shape) > MAX_DIMS or min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise RecordError(f"{key}: no array has the shape {shape}")
    return Form(np.dtype(array.dtype), shape)


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
    if array.stype != NUMPY:
        raise RecordError(f"{key}: serialised as {array.stype!r} instead of {NUMPY!r}")
    if tuple(array.shape) != form.shape:
        raise RecordError(f"{key}: shape {tuple(array.shape)} instead of {form.shape}")
    dtype = _accepted_dtype(key, array.dtype, form)
    size = math.prod(form.shape) * dtype.itemsize
    if not size <= len(array.data) <= size + MAGIC + MAX_HEADER:
        raise RecordError(f"{key}: {len(array.data)} bytes for shape {form.shape} of {dtype}")
    usual = usual_header(dtype, form.shape)
    if array.data[: len(usual)] == usual:  # as numpy writes it: nothing to parse
        start, fortran_order = len(usual), False
    else:
        start, fortran_order = _parsed_header(key, array.data, dtype, form.shape)
    if len(array.data) - start != size:
        raise RecordError(f"{key}: {len(array.data) - start} bytes of numbers instead of {size}")
    flat = np.frombuffer(array.data, dtype=dtype, offset=start)
    values = flat.reshape(form.shape, order="F" if fortran_order else "C")
    return _finite(key, values, form)


@lru_cache(maxsize=4096)
def usual_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What numpy writes before the numbers of an array that lies in C order."""
    buffer = BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _parsed_header(key: str, data: bytes, dtype: np.dtype[Any], expected: tuple[int, ...]) -> tuple[int, bool]:
    """Where the numbers begin, and whether they lie in Fortran order."""
    buffer = BytesIO(data)
    try:
        version = npy.read_magic(buffer)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran_order, actual = read_header(buffer, max_header_size=MAX_HEADER)
    except Exception:  # the header is Python source: its parser fails in as many ways as Python's
        raise RecordError(f"{key}: malformed bytes") from None
    if shape != expected or actual != dtype:
        raise RecordError(f"{key}: the bytes hold {shape} of {actual} where {expected} of {dtype} was declared")
    return buffer.tell(), fortran_order


def _accepted_dtype(key: str, declared: str, form: Form) -> np.dtype[Any]:
    """The dtype of a reply's array, if it can stand for the template's."""
    if declared == str(form.dtype):
        return form.dtype
    if form.is_float and declared in FLOATS:
        return np.dtype(declared)
    raise RecordError(f"{key}: dtype {declared} instead of {form.dtype}")


def _finite(key: str, values: np.ndarray[Any, Any], form: Form) -> Tensor:
    if values.dtype != form.dtype:
        with np.errstate(over="ignore"):
            values = values.astype(form.dtype)
    tensor = torch.from_numpy(np.ascontiguousarray(values)).reshape(form.shape)
    if form.is_float and tensor.numel():
        # One pass: the extremes are NaN if anything is, and infinite if anything is.
        low, high = torch.aminmax(tensor)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise RecordError(f"{key}: not finite")
    return tensor


def _cast(values: np.ndarray[Any, Any], form: Form) -> np.ndarray[Any, Any]:
    if values.dtype != form.dtype and form.dtype.kind in "iub":
        values = np.rint(values)
    # A 0-d array must stay one, and a transposed view must not travel as Fortran order.
    return np.asarray(values, dtype=form.dtype, order="C")


def _some(keys: list[str]) -> str:
    return ", ".join(map(repr, keys[:5])) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
