"""Provenance: what each start of a run depended on, and what changed."""

import json
import resource
import subprocess

import pytest

from cope_jax.runs.provenance import commit, provenance, record_start

BEFORE = {
    "code": "abc",
    "packages": {"jax": "0.10.2"},
    "devices": {"cpu": 8},
    "processes": 1,
    "data": "00ff",
    "config": {"seed": 0, "mesh.tensor": 1},
}


def test_changes_are_returned_and_recorded(tmp_path):
    now = BEFORE | {"code": "abc + changes", "devices": {"cpu": 4}, "config": {"seed": 0, "mesh.tensor": 2}}
    assert record_start(tmp_path, 0, BEFORE, accept_other_data=False) == []
    assert record_start(tmp_path, 5, now, accept_other_data=False) == [
        "code: 'abc' before, 'abc + changes' now",
        "config.mesh.tensor: 1 before, 2 now",
        "devices.cpu: 8 before, 4 now",
    ]
    lines = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, **BEFORE}, {"step": 5, **now}]


def test_other_training_data_must_be_accepted(tmp_path):
    other = BEFORE | {"data": "1234"}
    record_start(tmp_path, 0, BEFORE, accept_other_data=False)
    with pytest.raises(
        ValueError, match=r"differ from those .* \(fingerprint 00ff before, 1234 now\).* --accept_other_data"
    ):
        record_start(tmp_path, 5, other, accept_other_data=False)
    assert record_start(tmp_path, 5, other, accept_other_data=True) == ["data: '00ff' before, '1234' now"]


def test_a_line_cut_off_by_a_full_disk_is_removed_at_the_next_start(tmp_path, full_disk, capsys):
    record_start(tmp_path, 0, BEFORE, accept_other_data=False)
    path = tmp_path / "starts.jsonl"
    whole = path.read_bytes()
    full_disk(len(whole) + 20)
    assert record_start(tmp_path, 5, BEFORE, accept_other_data=False) == []
    full_disk(resource.RLIM_INFINITY)
    assert "starts.jsonl cannot be written (File too large)" in capsys.readouterr().err
    assert path.read_bytes()[: len(whole)] == whole != path.read_bytes()
    assert record_start(tmp_path, 5, BEFORE | {"code": "def"}, accept_other_data=False) == [
        "code: 'abc' before, 'def' now"
    ]
    assert [json.loads(line)["code"] for line in path.read_text().splitlines()] == ["abc", "def"]


def test_nothing_is_compared_before_the_first_checkpoint(tmp_path):
    record_start(tmp_path, 0, BEFORE, accept_other_data=False)
    assert record_start(tmp_path, 0, BEFORE | {"data": "1234"}, accept_other_data=False) == []


def test_parts_that_an_older_version_did_not_record_are_not_changes(tmp_path):
    older = {key: part for key, part in BEFORE.items() if key != "config"}
    record_start(tmp_path, 0, older, accept_other_data=False)
    assert record_start(tmp_path, 5, BEFORE, accept_other_data=False) == []


def test_the_commit_says_whether_files_changed(tmp_path):
    assert commit(tmp_path) == "unknown"

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    name = git("rev-parse", "HEAD")
    assert commit(tmp_path) == name
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{name} + changes"


def test_provenance_describes_this_process(tiny_config):
    found = provenance(tiny_config)
    assert found["devices"] == {"cpu": 8}
    assert found["processes"] == 1
    assert found["config"]["train.batch_size"] == 8
    assert found["config"]["optimizer.groups"] == [["", 1.0]]  # as it comes back from JSON
    assert set(found["packages"]) >= {"jax", "numpy", "grain"}
    assert len(found["data"]) == 16
