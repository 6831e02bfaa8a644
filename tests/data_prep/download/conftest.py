"""Keeps proxies of the environment away from the servers of the tests."""

import pytest


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for scheme in ("http", "https", "all"):
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)
