"""What a run was started with, and what changed since."""

import json
import resource
import subprocess

import pytest

from cope_jax.runs.provenance import circumstances, commit, record_start

BEFORE = {
    "code": "abc",
    "packages": {"jax": "0.10.2"},
    "devices": {"cpu": 8},
    "processes": 1,
    "data": "00ff",
    "config": {"seed": 0, "mesh.tensor": 1},
}


def test_changes_are_told_and_recorded(tmp_path):
    now = BEFORE | {"code": "abc + changes", "devices": {"cpu": 4}, "config": {"seed": 0, "mesh.tensor": 2}}
    assert record_start(tmp_path, 0, BEFORE, accept_other_data=False) == []
    assert record_start(tmp_path, 5, now, accept_other_data=False) == [
        "code is abc + changes, was abc",
        "config.mesh.tensor is 2, was 1",
        "devices.cpu is 4, was 8",
    ]
    lines = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, **BEFORE}, {"step": 5, **now}]


def test_other_data_are_refused_unless_accepted(tmp_path):
    other = BEFORE | {"data": "1234"}
    record_start(tmp_path, 0, BEFORE, accept_other_data=False)
    with pytest.raises(
        ValueError, match=r"are not those .* \(fingerprint 00ff there, 1234 now\).* --accept_other_data"
    ):
        record_start(tmp_path, 5, other, accept_other_data=False)
    assert record_start(tmp_path, 5, other, accept_other_data=True) == ["data is 1234, was 00ff"]


def test_a_line_that_a_full_disk_cut_off_is_in_nobodys_way(tmp_path, full_disk, capsys):
    record_start(tmp_path, 0, BEFORE, accept_other_data=False)
    path = tmp_path / "starts.jsonl"
    whole = path.read_bytes()
    full_disk(len(whole) + 20)
    assert record_start(tmp_path, 5, BEFORE, accept_other_data=False) == []
    full_disk(resource.RLIM_INFINITY)
    assert "starts.jsonl cannot be written (File too large)" in capsys.readouterr().err
    assert path.read_bytes()[: len(whole)] == whole != path.read_bytes()
    assert record_start(tmp_path, 5, BEFORE | {"code": "def"}, accept_other_data=False) == ["code is def, was abc"]
    assert [json.loads(line)["code"] for line in path.read_text().splitlines()] == ["abc", "def"]


def test_before_the_first_checkpoint_there_is_no_run_to_go_on_with(tmp_path):
    record_start(tmp_path, 0, BEFORE, accept_other_data=False)
    assert record_start(tmp_path, 0, BEFORE | {"data": "1234"}, accept_other_data=False) == []


def test_what_an_older_version_did_not_write_is_no_change(tmp_path):
    older = {key: part for key, part in BEFORE.items() if key != "config"}
    record_start(tmp_path, 0, older, accept_other_data=False)
    assert record_start(tmp_path, 5, BEFORE, accept_other_data=False) == []


def test_the_commit_tells_of_changes(tmp_path):
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


def test_the_circumstances_are_those_of_this_process(tiny_config):
    found = circumstances(tiny_config)
    assert found["devices"] == {"cpu": 8}
    assert found["processes"] == 1
    assert found["config"]["train.batch_size"] == 8
    assert found["config"]["optimizer.groups"] == [["", 1.0]]  # as it comes back from JSON
    assert set(found["packages"]) >= {"jax", "numpy", "grain"}
    assert len(found["data"]) == 16
