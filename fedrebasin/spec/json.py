"""A permutation spec as plain JSON data, and back."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fedrebasin.spec.axis import Axis, Factor, Layout

if TYPE_CHECKING:
    from fedrebasin.spec.spec import PermutationSpec

VERSION = 1


def encode(spec: PermutationSpec) -> dict[str, Any]:
    """The spec as dicts, lists, strings and numbers."""
    return {
        "version": VERSION,
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "parent": group.parent,
                "frozen": group.frozen,
                "axes": [_encode_axis(axis) for axis in group.axes],
            }
            for group in spec.groups.values()
        ],
        "shapes": {key: list(shape) for key, shape in spec.shapes.items()},
        "statistics": sorted(spec.statistics),
        "unpermuted": [list(row) for row in spec.unpermuted],
        "checked": spec.checked,
        **({"tied": [list(keys) for keys in spec.tied]} if spec.tied else {}),
    }


def decode(data: Any) -> PermutationSpec:
    """The spec that :func:`encode` described.

    Raises:
        ValueError: if the data does not describe one.
    """
    from fedrebasin.spec.group import Group, Unpermuted
    from fedrebasin.spec.spec import PermutationSpec

    try:
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']} is not {VERSION}")
        groups = {
            str(entry["name"]): Group(
                name=str(entry["name"]),
                size=None if entry["size"] is None else _whole(entry["size"]),
                axes=tuple(_decode_axis(axis) for axis in entry["axes"]),
                parent=entry["parent"],
                frozen=bool(entry["frozen"]),
            )
            for entry in data["groups"]
        }
        return PermutationSpec(
            groups=groups,
            shapes={
                str(key): tuple(None if size is None else _whole(size) for size in shape)
                for key, shape in data["shapes"].items()
            },
            statistics=frozenset(map(str, data["statistics"])),
            unpermuted=tuple(Unpermuted(str(k), int(d), str(r), str(o)) for k, d, r, o in data["unpermuted"]),
            checked=bool(data["checked"]),
            tied=tuple(tuple(map(str, keys)) for keys in data.get("tied", ())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _encode_axis(axis: Axis) -> dict[str, Any]:
    entry: dict[str, Any] = {"key": axis.key, "dim": axis.dim}
    if axis.layout is not None:
        entry["layout"] = {
            "levels": [list(factor) for factor in axis.layout.levels],
            "rest": [list(factor) for factor in axis.layout.rest],
            "start": [list(pair) for pair in axis.layout.start],
        }
    return entry


def _decode_axis(entry: Any) -> Axis:
    layout = entry.get("layout")
    if layout is None:
        return Axis(str(entry["key"]), _whole(entry["dim"]))
    found = Layout(
        levels=tuple(map(_decode_factor, layout["levels"])),
        rest=tuple(map(_decode_factor, layout["rest"])),
        start=tuple((_whole(dim), _whole(first)) for dim, first in layout["start"]),
    )
    if not found.levels:
        raise ValueError(f"{entry['key']}: a layout without units")
    for dim in found.dims:
        factors = [factor for factor in (*found.levels, *found.rest) if factor.dim == dim]
        if all(factor.size for factor in factors):  # 0 units: as many as the tensor will have
            _demand_apart(factors, str(entry["key"]))
    return Axis(str(entry["key"]), _whole(entry["dim"]), found)


def _decode_factor(entry: Any) -> Factor:
    dim, size, stride = entry
    if isinstance(stride, list):
        places = tuple(map(_whole, stride))
        if len(places) != size or len(places) < 2 or places[0] != 0:
            raise ValueError(f"{size} units at {len(places)} places")
        return Factor(_whole(dim), len(places), places)
    return Factor(_whole(dim), _whole(size), _whole(stride))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} where a whole number of at least 0 is needed")
    return value


def _demand_apart(factors: list[Factor], key: str) -> None:
    """Refuse indices along a dimension that two of their combinations lead to the same place."""
    reach = 0
    for factor in sorted(factors, key=lambda factor: factor.reach):
        places = sorted(factor.places) if isinstance(factor.stride, tuple) else [0, factor.stride][: factor.size]
        if any(after - before <= reach for before, after in pairwise(places)):
            raise ValueError(f"{key}: units of a layout overlap")
        reach += factor.reach
