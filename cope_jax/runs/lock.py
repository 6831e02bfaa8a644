"""One run at a time in a work directory."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax

from cope_jax.parallel.processes import check_shared_storage

FILE = ".lock"


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a work directory; the lock goes with the process, however that ends.

    Raises:
        ValueError: another process holds it; names that. Or its storage knows no locks.
    """
    handle = os.open(workdir / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(handle, 200).decode("utf-8", "replace").strip()
            raise ValueError(
                f"{owner or 'another process'} trains in {workdir}: wait for it, stop it, or choose another --workdir"
            ) from error
        except OSError as error:
            raise ValueError(
                f"{workdir} cannot be locked ({error.strerror}): NFS needs version 4 or a lock daemon for that, Lustre "
                "the mount option flock; or choose another --workdir"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(handle)


@contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Makes the work directory and holds it for this run alone.

    Raises:
        ValueError: another process trains in it, or other hosts of this run do not see it.
    """
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir) if jax.process_index() == 0 else nullcontext():
        check_shared_storage(workdir)
        yield
