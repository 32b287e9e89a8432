"""Input made worse: bytes that are flipped, cut and repeated, documents whose numbers, keys and depths are extreme."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

#: Numbers at which sizes, signs and types overflow.
NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(2**31)),
    *(-(2**63), 0.5, -0.5, 1e-320, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf),
)
TEXTS = (
    *("", "0", "x" * 300, "two\nlines", "\x00", "../../outside", "<script>x</script>", "{{ 7 * 7 }}", "ü\ud83d\ude00"),
    *("object", "float64", "<U9", "complex64", "O", "float16", "int64", "bool", "numpy.ndarray", "inf", "1e999", "-0"),
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None})
#: Bytes of an input. A change may write a part thirty times, and three changes 27,000 times.
LARGEST = 200_000
#: What parsers of several formats trip over.
TOKENS = (
    *(
        b"NaN",
        b"Infinity",
        b"1e999",
        b"-",
        b"null",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b"\\u0000",
        b"\xff\xfe",
        b"\x80",
    ),
    *(b"9" * 25, b"[" * 2000, b'{"a":' * 2000, b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"PK\x03\x04"),
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One or a few changes that know nothing of the format."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_OF_BYTES)(data, rng)
    return data


def mutate_document(data: bytes, rng: random.Random) -> bytes:
    """A JSON document with other values, keys and shapes; now and then its text is changed instead."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    if rng.random() < 0.1:
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = _changed(document, rng)
        try:
            changed = json.dumps(document).encode()
        except ValueError:  # a part lies in itself
            break
        if len(changed) > LARGEST:
            return changed
        data = changed
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\x01"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _flip_near_the_beginning(data: bytes, rng: random.Random) -> bytes:
    return _flip(data[:128], rng) + data[128:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _without_a_part(data: bytes, rng: random.Random) -> bytes:
    start, end = _part(data, rng)
    return data[:start] + data[end:]


def _repeated(data: bytes, rng: random.Random) -> bytes:
    start, end = _part(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(TOKENS) + data[place:]


def _overwritten(data: bytes, rng: random.Random) -> bytes:
    token = rng.choice(TOKENS)
    place = rng.randrange(len(data) + 1)
    return data[:place] + token + data[place + len(token) :]


def _part(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 8, 64, 400)))


_OF_BYTES: Sequence[Callable[[bytes, random.Random], bytes]] = (
    *(_flip, _flip, _flip_near_the_beginning, _cut, _without_a_part, _repeated, _inserted, _overwritten),
)

Place = tuple[Any, Any]  # a list or dict, and an index or key in it


def _changed(document: Any, rng: random.Random) -> Any:
    holder = [document]
    places = list(_places(holder))
    container, key = rng.choice(places)
    value = container[key]
    what = rng.randrange(10)
    if what == 0:
        container[key] = rng.choice(NUMBERS)
    elif what == 1:
        container[key] = rng.choice((*TEXTS, *OTHERS))
    elif what == 2:
        container[key] = _near(value, rng)
    elif what == 3 and container is not holder:
        del container[key]
    elif what == 4:
        other, at = rng.choice(places)
        container[key], other[at] = copy.deepcopy(other[at]), copy.deepcopy(value)  # one may lie in the other
    elif what == 5:
        container[key] = copy.deepcopy(rng.choice(places)[0])
    elif what == 6 and isinstance(container, dict):
        container[rng.choice((*TEXTS, *(str(k) for k in container)))] = container.pop(key)
    elif what == 7 and isinstance(container, list) and container is not holder:
        container[key:key] = [value] * rng.choice((1, 2, 30))
    elif what == 8:
        container[key] = rng.choice(([value], {"": value}, {"a": value, "b": value}, [value, value]))
    else:
        container[key] = _deep(value, rng.choice((3, 50)))
    return holder[0]


def _places(container: Any) -> list[Place]:
    found: list[Place] = []
    waiting = [container]
    while waiting:
        one = waiting.pop()
        for key in one if isinstance(one, dict) else range(len(one)):
            found.append((one, key))
            if isinstance(one[key], dict | list):
                waiting.append(one[key])
    return found


def _near(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int) and abs(value) > 10**300:  # no float is as large
        return rng.choice(NUMBERS)
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 10**6, float(value), str(value)))
    if isinstance(value, str) and value:
        place = rng.randrange(len(value))
        other = rng.choice("0123456789abcdef<\n\u00fc")
        return rng.choice((value[:place], value[:place] + other + value[place + 1 :], value + value, value[place:]))
    return rng.choice(NUMBERS)


def _deep(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value
