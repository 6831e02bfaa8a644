"""Atomic writes, locks, links and hashes of files."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from data_prep.common.differences import describe_differences

TEMPORARY = ".tmp"  # suffix of files that are being written; killed processes may leave some
OUT_REMEDY = "choose another --out or remove it"
LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def temporary_path(path: Path) -> Path:
    """Returns the name under which this process writes `path` before renaming it."""
    return path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", *, durable: bool = False) -> Iterator[IO]:
    """Opens a file that appears under `path`, replacing an older one, once it is complete.

    Args:
        path: File to write. Its folder must exist.
        mode: "wb" for bytes, "w" for UTF-8 text.
        durable: Also wait until the disk has the file, so that it survives a power failure.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)  # a write to a full disk does not name the file
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def atomic_folder(path: Path, *, keep_on_error: bool = False, replace: bool = False) -> Iterator[Path]:
    """Gives an empty folder next to `path` that is renamed to `path` once it is complete.

    The unfinished folder is `<path>.writing`. A killed process may leave it; the next call starts over in it.

    Args:
        path: Folder to write.
        keep_on_error: Keep the unfinished folder if an exception is raised.
        replace: Replace a folder of this name. Otherwise it must not exist or be empty.

    Raises:
        ValueError: The folder exists and is not empty, or another process is writing it.
    """
    unfinished = path.with_name(f"{path.name}.writing")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_name(f".{path.name}.lock"), f"is writing {path}", remove=True):
        if not replace and path.is_dir() and any(path.iterdir()):
            raise ValueError(
                f"{path} exists and is not empty; if another process has just written it, run the same command again"
            )
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        try:
            yield unfinished
            if replace:
                shutil.rmtree(path, ignore_errors=True)
            unfinished.replace(path)
        except BaseException:
            if not keep_on_error:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise


def is_finished(folder: Path, record: str, options: Mapping[str, object], *, kind: str) -> bool:
    """Returns whether a folder was made with `options`, which its JSON file `record` contains; False if it is free.

    Hidden files, such as locks, and files that a killed process was writing do not count.

    Raises:
        ValueError: The folder has no record, so it is not of this `kind` ("a synthetic release"), or has other options.
    """
    if not folder.exists() or (
        folder.is_dir() and all(path.name.startswith(".") or path.suffix == TEMPORARY for path in folder.iterdir())
    ):
        return False
    if not (folder / record).is_file():
        raise ValueError(f"{folder} exists and is not {kind}, because it has no {record}; {OUT_REMEDY}")
    found = read_json(folder / record, remedy=OUT_REMEDY)
    found = {key: found[key] for key in options if key in found}
    if differences := describe_differences(found, options, labels=("there", "given")):
        raise ValueError(f"{folder} contains {kind} with other options ({', '.join(differences)}); {OUT_REMEDY}")
    return True


@contextlib.contextmanager
def lock_file(path: Path, activity: str, *, wait: bool = False, remove: bool = False) -> Iterator[None]:
    """Holds an exclusive lock; the system releases it when the process ends, for whatever reason.

    Args:
        path: The lock file. It names the process that holds the lock.
        activity: What the holder does, for the error message: "is training in runs/demo".
        wait: Wait for the lock instead of raising an error.
        remove: Remove the lock file afterwards.

    Raises:
        ValueError: Another process holds the lock, or the file system does not support locks.
    """
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{_read_holder(path)} {activity}; wait for it or stop it") from error
    except OSError as error:
        if error.errno not in LOCKS_UNSUPPORTED:
            raise
        raise ValueError(
            f"{path} cannot be locked ({error.strerror}); NFS needs version 4 or a lock daemon for that, and "
            "Lustre the mount option flock"
        ) from error
    try:
        with contextlib.suppress(OSError):  # only for the error message of other processes; the disk may be full
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        if remove:
            # Before the release: FileLock checks that a file it has locked still has a name, so a process that opened
            # this one starts over with a new file. After the release, the lock of the next process would be removed.
            path.unlink(missing_ok=True)
        lock.release()


def _read_holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:  # removed in the meantime
        return "another process"


@contextlib.contextmanager
def plain_links() -> Iterator[Callable[[Path], str]]:
    """Gives a function that returns a plain name for a file or folder, for DuckDB.

    DuckDB reads wildcards, `key=value`, `?` and backslashes in a path. The names are links in a temporary folder.
    """
    parent = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(dir=parent if re.fullmatch(r"[\w/.-]+", parent) else "/tmp") as folder:

        def link(path: Path) -> str:
            name = Path(folder) / str(len(os.listdir(folder)))
            name.symlink_to(path.absolute())
            return str(name)

        yield link


def read_json(path: Path, *, keys: Collection[str] = (), remedy: str) -> Any:
    """Reads a JSON object.

    Raises:
        ValueError: The file is not JSON, for example because it was cut off, or lacks some of `keys`. The message ends
            with the remedy.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON or UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: {remedy}")
    if missing := [key for key in keys if key not in content]:
        raise ValueError(f"{path} has no {', '.join(missing)}: {remedy}")
    return content


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 hash of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
