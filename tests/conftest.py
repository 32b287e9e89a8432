"""No test downloads anything."""

import pytest


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("FEDREBASIN_OFFLINE", "1")
    monkeypatch.setenv("FEDREBASIN_DATA", "/no/such/folder")
