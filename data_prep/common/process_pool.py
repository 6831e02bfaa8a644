"""A pool of processes on this machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class ProcessMap(Protocol):
    """Applies a function to each argument and yields (index of the argument, result) in any order.

    An exception raised for one argument cancels those that have not started.
    """

    def __call__(
        self, function: Callable[[Argument], Result], arguments: Sequence[Argument]
    ) -> Iterator[tuple[int, Result]]: ...


def usable_cores() -> int:
    """Returns the number of cores this process may use; all cores if the system does not report it (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def process_map(processes: int | None = None) -> Iterator[ProcessMap]:
    """Opens a pool whose processes start with the first work that needs them.

    Args:
        processes: Size of the pool. 1 runs everything in this process. None is one process per core, or 1 inside a
            worker of another pool, which may not have children.

    Yields:
        The map. It raises ChildProcessError if a worker is killed.
    """
    if processes is None:
        processes = 1 if multiprocessing.current_process().daemon else usable_cores()
    if processes == 1:
        yield _map_here
        return

    def apply(function, arguments):
        return _map_here(function, arguments) if len(arguments) <= 1 else _map_in(pool, function, arguments)

    # Spawned, not forked: the caller may have threads (JAX, gRPC), and a fork copies their locks in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=follow_parent) as pool:
        yield apply


def _map_here(function, arguments):
    for index, argument in enumerate(arguments):
        yield index, function(argument)


def _map_in(pool: ProcessPoolExecutor, function, arguments):
    futures = {}
    try:
        with _ignored_interrupts():  # inherited by the workers, which start here: the parent handles Ctrl-C
            futures.update((pool.submit(function, argument), index) for index, argument in enumerate(arguments))
        for future in as_completed(futures):
            yield futures.pop(future), future.result()  # popped so that results are not kept
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process was killed, probably because memory ran out; run the command again with fewer --processes"
        ) from error
    finally:
        for future in futures:
            future.cancel()


@contextlib.contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C in this process; does nothing in other threads than the main one, which may not change it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def follow_parent(lock: contextlib.AbstractContextManager | None = None) -> None:
    """Makes a worker ignore Ctrl-C, which its parent handles, and exit when its parent is killed.

    Args:
        lock: A lock that the worker holds while it must not end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        with lock or contextlib.nullcontext():
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
