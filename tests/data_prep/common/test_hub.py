"""Folders of the Hugging Face hub without network access: at once, and from the cache."""

import socket
import time

import pytest
from huggingface_hub import constants

from data_prep.common import hub

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one repository, of which a file is there."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--cached"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "config.json").write_text("{}")
    return repository / "snapshots" / COMMIT


@pytest.fixture(params=["refuses", "is silent"])
def endpoint(request, monkeypatch):
    """A hub that refuses connections, or accepts them and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if request.param == "refuses":
            server.close()
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield address


def test_a_hub_that_cannot_be_reached_is_reported_soon(endpoint, cache, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.5)
    start = time.monotonic()
    match = r"key is 'no-one/none', which is neither .* run `hf download no-one/none --local-dir FOLDER`"
    with pytest.raises(FileNotFoundError, match=match):
        hub.find_folder("no-one/none", ["config.json"], key="key")
    assert time.monotonic() - start < 3
    assert hub.find_folder("someone/cached", ["config.json"], key="key") == cache
    assert hub.is_available("someone/cached", "config.json")
    assert not hub.is_available("someone/cached", "model.safetensors")


def test_the_cache_alone_is_used_without_downloads(cache):
    assert hub.find_folder("someone/cached", ["config.json"], key="key", download=False) == cache
    with pytest.raises(FileNotFoundError, match="key is 'no-one/none'"):
        hub.find_folder("no-one/none", ["config.json"], key="key", download=False)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "with blank"])
def test_a_missing_folder_is_reported(name):
    with pytest.raises(FileNotFoundError, match=f"key is '{name}', which is neither a local folder nor"):
        hub.find_folder(name, ["config.json"], key="key")
