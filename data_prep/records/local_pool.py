"""Work spread over the processes of this machine: writing shards, and reading them."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from typing import TypeVar

from data_prep.common.cores import usable_cores
from data_prep.records import shards
from data_prep.records.shards import Shard, ShardReport

Argument = TypeVar("Argument")
Result = TypeVar("Result")
# Applies a function to arguments and yields, in any order, the index of each and its result. An error in one stops
# the others.
Map = Callable[[Callable[[Argument], Result], Sequence[Argument]], Iterator[tuple[int, Result]]]
# Finishes shards and yields, in any order, the index of each, its report and whether an earlier run wrote it. An
# error in one stops the others; those written by then stay.
Runner = Callable[[Sequence[Shard]], Iterator[tuple[int, ShardReport, bool]]]


@contextlib.contextmanager
def local_map(processes: int | None = None) -> Iterator[Map]:
    """Gives a map over a pool, whose processes start with the first work that needs them.

    None stands for one process a core, and for one alone inside a worker of another pool, which may have no
    children. One process is this one.
    """
    if processes is None:
        processes = 1 if multiprocessing.current_process().daemon else usable_cores()
    if processes == 1:
        yield _map_here
        return
    # Spawned, not forked: the caller may have threads (jax, gRPC), whose locks a fork copies in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_parent) as pool:
        yield lambda function, arguments: (_map_here if len(arguments) <= 1 else _map_in(pool))(function, arguments)


@contextlib.contextmanager
def local_runner(processes: int | None = None) -> Iterator[Runner]:
    """Gives a runner over a pool as of `local_map`."""
    with local_map(processes) as apply:
        yield lambda orders: ((index, *result) for index, result in apply(shards.finish_shard, orders))


def _map_here(function, arguments):
    for index, argument in enumerate(arguments):
        yield index, function(argument)


def _map_in(pool: Executor) -> Map:
    def apply(function, arguments):
        futures = {pool.submit(function, argument): index for index, argument in enumerate(arguments)}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()  # popped: results are not kept
        finally:
            for future in futures:
                future.cancel()

    return apply


def _follow_parent() -> None:
    """Makes a worker leave Ctrl-C to its parent and end when that is killed (a pool's waits for ever)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
