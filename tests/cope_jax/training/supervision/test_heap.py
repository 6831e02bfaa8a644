"""Gaps of the C library's heap, in a process whose threads share one as in training on processors."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
# Blocks of 20 to 200 KB with small ones between them; the former are freed, so that the latter keep the gaps apart.
PROGRAM = """
import ctypes
import random
from cope_jax.training.supervision.heap import SMALLEST, Mallinfo, close_gaps

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo2.restype = Mallinfo

def gaps():
    found = libc.mallinfo2()
    return found.fordblks - found.keepcost

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

random.seed(0)
kept, freed, at_first = [], [], gaps()
for number in range(2000):
    size = random.randrange(20_000, 200_000)
    large = libc.malloc(size)
    ctypes.memset(large, 255, size)
    freed.append((large, size))
    small = libc.malloc(64)
    ctypes.memset(small, number % 251, 64)
    kept.append(small)
for block, _ in freed:
    libc.free(block)
before, held = gaps(), resident()
closed = close_gaps()
new = libc.malloc(100_000)
print(closed, before - at_first, gaps(), held - resident())
print(any(block <= new < block + size for block, size in freed))
print(all(ctypes.string_at(block, 64) == bytes([number % 251] * 64) for number, block in enumerate(kept)))
print(close_gaps())
"""


def run(**settings: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_MAX_": "0", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_gaps_are_taken_and_their_memory_goes_back_while_what_is_in_use_stays():
    sizes, reused, intact, again = run(MALLOC_ARENA_MAX="1", MALLOC_TRIM_THRESHOLD_="1000000000000")
    closed, made, left, given_back = map(int, sizes.split())
    assert made > 150e6
    assert closed > 0.8 * made
    assert left < 0.2 * made
    assert given_back > 0.7 * made
    assert reused == "False"
    assert intact == "True"
    assert int(again) < 1e6


def test_where_threads_have_heaps_of_their_own_nothing_is_taken():
    sizes, reused, _, again = run()
    assert sizes.startswith("0 ")
    assert (reused, again) == ("True", "0")
