"""Finishes shards on this machine, in a pool of processes or in this one."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed

from data_prep import shards
from data_prep.shards import Shard, ShardReport

# Finishes shards and yields, in any order, the index of each, its report and whether an earlier run wrote it. An
# error in one stops the others; those written by then stay.
Runner = Callable[[Sequence[Shard]], Iterator[tuple[int, ShardReport, bool]]]


@contextlib.contextmanager
def local_runner(processes: int | None = None) -> Iterator[Runner]:
    """Gives a runner over a pool, whose processes start with the first shards that need them.

    None stands for one process a core, and for one alone inside a worker of another pool, which may have no
    children. One process is this one.
    """
    if processes is None:
        processes = 1 if multiprocessing.current_process().daemon else len(os.sched_getaffinity(0))
    if processes == 1:
        yield finish_here
        return
    # Spawned, not forked: the caller may have threads (jax, gRPC), whose locks a fork copies in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_follow_parent) as pool:
        yield lambda orders: finish_here(orders) if len(orders) <= 1 else _finish_in(pool, orders)


def finish_here(orders: Sequence[Shard]) -> Iterator[tuple[int, ShardReport, bool]]:
    """Finishes shards in this process: the runner of one process."""
    for index, shard in enumerate(orders):
        yield index, *shards.finish_shard(shard)


def _finish_in(pool: Executor, orders: Sequence[Shard]) -> Iterator[tuple[int, ShardReport, bool]]:
    futures = {pool.submit(shards.finish_shard, shard): index for index, shard in enumerate(orders)}
    try:
        for future in as_completed(futures):
            yield futures.pop(future), *future.result()
    finally:
        for future in futures:
            future.cancel()


def _follow_parent() -> None:
    """Makes a worker leave Ctrl-C to its parent and end when that is killed (a pool's waits for ever)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
