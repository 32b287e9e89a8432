"""The engine finds what is planted."""

import pytest
import torch

from fedrebasin import RebasinError
from tests.fuzzing.engine import Target, assert_nothing_found, fuzz
from tests.fuzzing.mutating import mutate_bytes


def refusing(what):
    """Half of the inputs are refused in a way that must not be."""

    def check(data):
        if data[:1] > b"\x80":
            what()
        if len(data) < 3:
            raise RebasinError("too short")

    return Target("planted", lambda: [b"abcd"], check, mutate_bytes)


def foreign():
    raise KeyError("planted")


def two_lines():
    raise type("OwnError", (RebasinError,), {"__str__": lambda self: "one\ntwo"})("x")


def claimed():
    torch.empty(2**33, dtype=torch.uint8)


def told_of():
    try:
        bytearray(2**33)
    except MemoryError as error:
        raise RebasinError(f"unreadable: {type(error).__name__}") from None


@pytest.mark.parametrize("what", [foreign, two_lines, claimed, told_of])
def test_what_must_not_happen_is_found(what):
    report = fuzz(refusing(what), 0, lambda report: report.cases < 300)
    assert len(report.findings) == 1
    with pytest.raises(AssertionError, match="planted"):
        assert_nothing_found(refusing(what), 300)


def test_nothing_is_found_where_nothing_is():
    assert not fuzz(refusing(lambda: None), 0, lambda report: report.cases < 300).findings
