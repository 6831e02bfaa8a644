"""Manifests of checkpoints."""

from pathlib import Path

import pytest

from cope_jax.runs.manifest import find_problems, write_manifest


@pytest.fixture
def folder(tmp_path):
    """A folder with two files and a manifest."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/array").write_bytes(b"1234567")
    (tmp_path / "window").write_bytes(b"{}")
    write_manifest(tmp_path)
    return tmp_path


def test_problems_are_listed_by_file(folder):
    (folder / "state/array").write_bytes(b"123456")
    (folder / "window").write_bytes(b"[]")
    assert find_problems(folder) == ["state/array has 6 bytes instead of 7", "window has changed: its hash differs"]
    (folder / "window").unlink()
    assert find_problems(folder)[1] == "window is missing"
    (folder / "manifest.json").write_text("{")
    assert "manifest.json cannot be parsed" in find_problems(folder)[0]


def test_every_flipped_bit_of_a_manifest_is_detected(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    write_manifest(tmp_path)
    path = tmp_path / "manifest.json"
    content = path.read_bytes()
    assert find_problems(tmp_path) == []
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        if place == content.index(b"1"):  # the format
            with pytest.raises(ValueError, match="has format 3"):
                find_problems(tmp_path)
        else:
            assert find_problems(tmp_path), f"byte {place} of {content}"


def test_files_that_cannot_be_read_are_invalid(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("cope_jax.runs.manifest.file_sha256", fail)
        assert "state/array cannot be read (Input/output error)" in find_problems(folder)
    monkeypatch.setattr(Path, "read_text", fail)
    assert find_problems(folder) == ["manifest.json cannot be read (Input/output error)"]
