"""Atomic writes, locks and hashes of files."""

import errno
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common.files import atomic_folder, atomic_write, file_sha256, is_finished, lock_file, temporary_path

ROOT = Path(__file__).parents[3]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(("mode", "content"), [("wb", b"new"), ("w", "n\u00e9w")])
def test_a_file_appears_once_it_is_complete(tmp_path, mode, content, durable):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path, mode, durable=durable) as file:
        file.write(content)
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == (content if mode == "wb" else content.encode("utf-8"))
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write("text to a file of bytes")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_in_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/a\.txt"), atomic_write(tmp_path / "none" / "a.txt"):
        pass


def test_a_folder_appears_once_it_is_complete(tmp_path):
    path = tmp_path / "new" / "folder"
    unfinished = path.with_name("folder.writing")
    unfinished.mkdir(parents=True)
    (unfinished / "left by a killed process").touch()
    with atomic_folder(path) as folder:
        (folder / "a").touch()
        assert not path.exists()
    assert names(path) == ["a"]
    assert names(path.parent) == ["folder"]  # neither the lock file nor the unfinished folder


@pytest.mark.parametrize("keep_on_error", [False, True])
def test_a_failed_folder_is_kept_only_on_request(tmp_path, keep_on_error):
    with (
        pytest.raises(FileNotFoundError),
        atomic_folder(tmp_path / "folder", keep_on_error=keep_on_error) as folder,
    ):
        (folder / "none" / "a").touch()
    assert names(tmp_path) == (["folder.writing"] if keep_on_error else [])


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path):
    with (
        atomic_folder(tmp_path / "folder"),
        pytest.raises(ValueError, match=rf"process {os.getpid()} on \S+ is writing \S+folder; wait for it or stop it"),
        atomic_folder(tmp_path / "folder"),
    ):
        pass
    assert names(tmp_path) == ["folder"]


def test_a_folder_with_content_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    message = "folder exists and is not empty; if another process has just written it, run the same command again"
    with pytest.raises(ValueError, match=message), atomic_folder(tmp_path / "folder"):
        pytest.fail("nothing can be written")
    assert names(tmp_path / "folder") == ["old"]


def test_a_lock_names_its_holder_until_the_holder_is_killed(tmp_path):
    code = """
import pathlib, sys
from data_prep.common.files import lock_file
with lock_file(pathlib.Path(sys.argv[1]), "works"):
    print("locked", flush=True)
    sys.stdin.read()
"""
    path = tmp_path / ".lock"
    holder = python(code, path)
    assert holder.stdout.readline() == "locked\n"
    message = rf"process {holder.pid} on \S+ is training; wait for it or stop it"
    with pytest.raises(ValueError, match=message), lock_file(path, "is training"):
        pass
    holder.kill()
    holder.communicate()
    with lock_file(path, "is training"):
        assert f"process {os.getpid()} on " in path.read_text()
    assert path.exists()


def test_only_one_process_holds_a_lock_whose_file_is_removed(tmp_path):
    """Three processes take the lock in turns; a file of its own shows that no other one is inside."""
    code = """
import os, pathlib, sys
from data_prep.common.files import lock_file
folder, turns = pathlib.Path(sys.argv[1]), 0
while turns < 100:
    try:
        with lock_file(folder / ".lock", "works", remove=True):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            os.unlink(folder / "inside")
            turns += 1
    except ValueError:
        pass
"""
    for process in [python(code, tmp_path) for _ in range(3)]:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert names(tmp_path) == []


def test_a_lock_can_be_waited_for(tmp_path):
    code = """
import pathlib, sys
from data_prep.common.files import lock_file
print("waits", flush=True)
with lock_file(pathlib.Path(sys.argv[1]), "works", wait=True):
    print("locked", flush=True)
"""
    with lock_file(tmp_path / ".lock", "works"):
        waiting = python(code, tmp_path / ".lock")
        assert waiting.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.2)
    assert waiting.communicate(timeout=60) == ("locked\n", "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errno.EOPNOTSUPP, r"\.lock cannot be locked \(Operation not supported\); NFS needs version 4"),
        (errno.ENOLCK, r"\.lock cannot be locked \(No locks available\)"),
        (errno.ENOSYS, r"\.lock cannot be locked \(Function not implemented\)"),
    ],
)
def test_file_systems_without_locks_are_explained(tmp_path, monkeypatch, error, message):
    def fail(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(ValueError, match=message), lock_file(tmp_path / ".lock", "works"):
        pass


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_folders_that_cannot_be_written_are_named(tmp_path, monkeypatch, error):
    """Simulated, because the superuser may write to any folder."""

    def fail(path, *_, **__):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(os, "open", fail)
    monkeypatch.setattr(Path, "open", fail)
    for writing in (
        lock_file(tmp_path / ".lock", "works"),
        atomic_folder(tmp_path / "folder"),
        atomic_write(tmp_path / "file"),
    ):
        with pytest.raises(OSError, match=rf"{os.strerror(error)}: '{tmp_path}/[a-z.]+"), writing:
            pass


def test_a_full_disk_is_named_by_its_file(tmp_path):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"), atomic_write(tmp_path / "file"):
        raise error


def test_a_lock_does_not_need_room_for_the_holders_name(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fail)
    with (
        lock_file(tmp_path / ".lock", "works"),
        pytest.raises(ValueError, match="another process works"),
        lock_file(tmp_path / ".lock", "works"),
    ):
        pass


def test_the_hash_is_that_of_the_whole_file(tmp_path):
    data = bytes(range(256)) * 3000
    (tmp_path / "a").write_bytes(data)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_a_folder_with_only_remains_of_a_killed_process_is_free(tmp_path):
    folder = tmp_path / "made"
    assert not is_finished(folder, "made.json", {"seed": 1}, kind="a thing")
    folder.mkdir()
    (folder / ".lock").touch()
    temporary_path(folder / "made.json").write_text("{")
    assert not is_finished(folder, "made.json", {"seed": 1}, kind="a thing")
    (folder / "made.json").write_text('{"seed": 1, "other": 2}')
    assert is_finished(folder, "made.json", {"seed": 1}, kind="a thing")
    with pytest.raises(ValueError, match="it has no other"):
        is_finished(folder, "other.json", {}, kind="a thing")
    with pytest.raises(ValueError, match="contains a thing with other options"):
        is_finished(folder, "made.json", {"seed": 2}, kind="a thing")
