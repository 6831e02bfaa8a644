"""Checkpoints that are invalid, unfinished, copied, of another model, or on a full disk."""

import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from cope_jax.runs.checkpoints import Checkpoints, TrainState, set_aside_invalid
from cope_jax.runs.manifest import find_problems

GOLDEN = Path(__file__).parent / "golden"  # one checkpoint for each format


def make_state(value, *, width=3):
    params = {"model": {"a": jnp.full((width, 4), value, jnp.float32)}, "loss": {"t": jnp.float32(value)}}
    return TrainState(
        step=jnp.asarray(int(value), jnp.int32), params=params, statistics={"mean": jnp.zeros(2)}, opt_state=[params]
    )


def save_steps(workdir, *steps, keep=3):
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"loss": (step / 3, 1.0)})


def restored(workdir, step):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(step, make_state(0))


def largest_file(folder):
    """The largest file with arrays."""
    return max((path for path in (folder / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:-1])


def empty(folder):
    largest_file(folder).write_bytes(b"")


def flip_a_bit(folder):
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete_half(folder):
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[::2]:
        path.unlink()


def delete_manifest(folder):
    (folder / "manifest.json").unlink()


def change_manifest_key(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("sha256", "sha257", 1))


CHANGES = [truncate, empty, flip_a_bit, delete_half, delete_manifest, change_manifest_key]


def test_state_and_window_are_restored_bit_for_bit(tmp_path):
    save_steps(tmp_path, 1, 2)
    state, window = restored(tmp_path, 2)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(2))
    assert window == {"loss": (2 / 3, 1.0)}
    assert find_problems(tmp_path / "checkpoints/2") == []


@pytest.mark.parametrize("change", CHANGES)
def test_an_invalid_checkpoint_is_set_aside_and_the_previous_one_is_used(tmp_path, capsys, change):
    save_steps(tmp_path, 1, 2)
    change(tmp_path / "checkpoints/2")
    set_aside_invalid(tmp_path)
    assert "the checkpoint of step 2 is invalid, moved to" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["2-0"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
    assert int(restored(tmp_path, 1)[0].step) == 1


def test_the_newest_and_the_best_checkpoint_must_be_valid(tmp_path):
    """Other checkpoints are not read."""
    save_steps(tmp_path, 1, 2, 3, 4, keep=4)
    for step in (1, 2):
        flip_a_bit(tmp_path / f"checkpoints/{step}")
    set_aside_invalid(tmp_path, lambda steps: 2 if 2 in steps else 3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 3, 4]
    flip_a_bit(tmp_path / "checkpoints/3")
    set_aside_invalid(tmp_path, lambda steps: min(steps))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4]


def test_a_run_without_a_valid_checkpoint_fails_at_every_start(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        empty(tmp_path / f"checkpoints/{step}")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no valid checkpoint is left in .*checkpoints.* or remove .*damaged"):
            set_aside_invalid(tmp_path)
    shutil.rmtree(tmp_path / "damaged")
    set_aside_invalid(tmp_path)


def test_restoring_the_model_of_an_invalid_checkpoint_is_an_error(tmp_path):
    save_steps(tmp_path, 1)
    flip_a_bit(tmp_path / "checkpoints/1")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"checkpoints/1 is invalid, choose another --step: .* has changed"),
    ):
        checkpoints.restore_model(1, None)


def test_a_copy_from_an_object_store_is_restored(tmp_path):
    """It has files only: no empty folders, times or modes."""
    save_steps(tmp_path / "here", 1)
    source, target = tmp_path / "here/checkpoints/1", tmp_path / "there/checkpoints/1"
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    assert find_problems(target) == []
    jax.tree.map(np.testing.assert_array_equal, restored(tmp_path / "there", 1)[0], make_state(1))


def test_restoring_another_model_lists_all_differences(tmp_path):
    save_steps(tmp_path, 1)
    other = make_state(0, width=5)
    other.params["model"]["b"] = jnp.zeros(2)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="of another model or optimizer") as raised,
    ):
        checkpoints.restore(1, other)
    text = str(raised.value)
    assert "params/model/a: float32[3, 4] in the checkpoint, float32[5, 4] by the config" in text
    assert "params/model/b: nothing in the checkpoint, float32[2] by the config" in text
    assert "opt_state/0/model/a" in text
    assert "statistics" not in text


def test_restoring_with_other_frozen_parameters_names_the_groups(tmp_path):
    save_steps(tmp_path, 1)
    other = make_state(0)
    other.opt_state[0] = {"model": {}, "loss": other.params["loss"]}
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"config\.optimizer\.groups must freeze the same parameters") as raised,
    ):
        checkpoints.restore(1, other)
    (difference,) = str(raised.value).splitlines()[1:]
    assert difference == "  opt_state/0/model/a: float32[3, 4] in the checkpoint, nothing by the config"


def test_the_remains_of_a_killed_save_are_removed(tmp_path):
    save_steps(tmp_path, 1)
    left = tmp_path / "checkpoints/2.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:  # a reader changes nothing
        assert checkpoints.latest() == 1
    assert left.exists()
    save_steps(tmp_path, 3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from an event loop of Orbax
def test_a_failed_save_is_reported_and_the_next_one_succeeds(tmp_path, capfd, full_disk):
    """Earlier checkpoints remain, and nothing of the failed one."""
    state = make_state(2)
    # Random, or it would be compressed to nothing.
    state.params["model"]["a"] = jax.random.normal(jax.random.key(0), (100_000, 4))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        assert checkpoints.wait()
        full_disk(100_000)
        checkpoints.save(2, state, {})
        assert not checkpoints.wait()
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["1"]
        assert checkpoints.latest() == checkpoints.saved.step == 1
        full_disk(resource.RLIM_INFINITY)
        checkpoints.save(3, state, {})
        assert checkpoints.wait()
        assert checkpoints.latest() == 3
    assert [path.name for path in checkpoints.folder.iterdir()] == ["3"]
    assert "saving step 2 in" in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from an event loop of Orbax
def test_errors_of_a_failed_save_do_not_fail_the_next_one(tmp_path, capsys, full_disk):
    """Orbax has an error for the metadata and one for the arrays."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        full_disk(100)
        checkpoints.save(1, make_state(1), {})
        assert not checkpoints.wait()
        full_disk(resource.RLIM_INFINITY)
        for thread in threading.enumerate():
            if thread.name == "async_save":  # of that save, which may still report an error
                thread.join()
        checkpoints.save(2, make_state(2), {})
        assert checkpoints.wait()
        full_disk(100)
        checkpoints.save(3, make_state(3), {})
    assert capsys.readouterr().err.count("saving step ") == 2


def test_arrays_that_arrive_after_their_save_has_failed_do_not_fail_the_next_one(tmp_path):
    """The disk is full for the metadata, and has space again for the arrays."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.pending = None  # as `wait` leaves it after an error of the metadata
        for thread in threading.enumerate():
            if thread.name == "async_save":
                thread.join()
        checkpoints.save(2, make_state(2), {})
        assert checkpoints.wait()
        assert checkpoints.latest() == 2


def test_a_save_that_does_not_begin_has_failed(tmp_path, capsys, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        assert checkpoints.wait()

        def fail(*args, **kwargs):
            raise OSError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.manager, "save", fail)
            checkpoints.save(2, make_state(2), {})
        assert not checkpoints.wait()
        assert checkpoints.saved.step == checkpoints.latest() == 1
    assert "saving step 2 in" in capsys.readouterr().err


def test_remains_that_cannot_be_removed_do_not_fail_later_saves(tmp_path, monkeypatch):
    """Neither does a disk whose files cannot be listed."""

    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    left = tmp_path / "checkpoints/1.orbax-checkpoint-tmp"
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        with monkeypatch.context() as patch:
            for name in ("rmdir", "unlink", "remove"):
                patch.setattr(os, name, fail)
            patch.setattr(checkpoints.manager, "reload", fail)
            checkpoints.save(1, make_state(1), {}, fail)
            assert not checkpoints.wait()
        assert left.exists()
        for step in (2, 11):
            checkpoints.save(step, make_state(step), {})
            assert checkpoints.wait()
        assert find_problems(checkpoints.folder / "11") == []
        assert left.exists()


def test_a_save_whose_log_is_not_on_disk_fails(tmp_path, capsys):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1), {})

        def fail():
            assert not (checkpoints.folder / "2").exists()
            raise OSError("metrics.jsonl cannot be written")

        checkpoints.save(2, make_state(2), {}, fail)
        assert not checkpoints.wait()
        assert checkpoints.steps() == [1]
        checkpoints.save(3, make_state(3), {})
        assert checkpoints.wait()
    assert "failed: metrics.jsonl cannot be written" in capsys.readouterr().err


def test_a_save_counts_as_saved_once_it_is_complete(tmp_path):
    """A resumed run counts from the age of its checkpoint."""
    go_on = threading.Event()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.saved is None
        checkpoints.save(1, make_state(1), {}, go_on.wait)
        assert checkpoints.saved is None
        go_on.set()
        checkpoints.manager.wait_until_finished()  # as time would
        assert checkpoints.saved.step == 1
    os.utime(tmp_path / "checkpoints/1", (0, time.time() - 130))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.restore(1, make_state(0))
        assert str(checkpoints.saved).startswith("1, 02:1")


def test_a_process_waits_until_it_sees_the_newest_step_of_process_0(tmp_path, monkeypatch):
    """Storage may show a rename late. This is process 1."""
    save_steps(tmp_path, 1, 2)
    folder, hidden = tmp_path / "checkpoints/2", tmp_path / "hidden"
    os.rename(folder, hidden)
    with Checkpoints(tmp_path) as checkpoints, monkeypatch.context() as patch:
        patch.setattr("jax.process_count", lambda: 2)
        patch.setattr(multihost_utils, "broadcast_one_to_all", lambda step: np.int32(2))
        patch.setattr(multihost_utils, "process_allgather", lambda seen: np.array([True, seen]))
        patch.setattr("time.sleep", lambda seconds: os.rename(hidden, folder))
        assert checkpoints.latest() == 1
        assert checkpoints.agreed_latest() == 2
        os.rename(folder, hidden)
        patch.setattr("cope_jax.parallel.processes.STORAGE_TIMEOUT", 0.0)
        with pytest.raises(ValueError, match=r"process 1 of 2 does not see that 2 is the newest step in .*: --workdir"):
            checkpoints.agreed_latest()


def test_a_manifest_lists_every_file_with_data(tmp_path):
    save_steps(tmp_path, 1)
    folder = tmp_path / "checkpoints/1"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    unlisted = {name.rpartition("/")[2] for name in present - listed.keys()}
    assert unlisted == {"manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt"}


@pytest.mark.parametrize("version", [path.name for path in sorted(GOLDEN.iterdir())])
def test_checkpoints_of_every_format_load(version, tmp_path):
    """`save_steps(…, 3)` wrote them when the format was new."""
    shutil.copytree(GOLDEN / version, tmp_path / "checkpoints/3")
    set_aside_invalid(tmp_path)
    state, window = restored(tmp_path, 3)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(3))
    assert window == {"loss": (1.0, 1.0)}


def test_a_checkpoint_of_a_newer_version_is_not_set_aside(tmp_path):
    save_steps(tmp_path, 1)
    path = tmp_path / "checkpoints/1/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ValueError, match=r"checkpoints/1 has format 99, but .* up to 1: use the version that"):
        set_aside_invalid(tmp_path)
    assert path.exists()


@pytest.mark.parametrize("name", ["a[b]", "a\\b", "gs:", "*?", "~"])
def test_a_work_directory_may_have_any_name(tmp_path, name):
    save_steps(tmp_path / name, 1, 2)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) == ["1", "2"]
    assert [find_problems(tmp_path / name / "checkpoints" / step) for step in ("1", "2")] == [[], []]
    jax.tree.map(np.testing.assert_array_equal, restored(tmp_path / name, 2)[0], make_state(2))


def test_several_processes_need_a_name_that_orbax_reads_literally(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"several processes cannot save to .*/a\[b\]/checkpoints; choose a folder"):
        Checkpoints(tmp_path / "a[b]")
