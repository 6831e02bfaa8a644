"""Tests of the heap's settings and of closing its gaps, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
# Blocks of 20 to 200 KB with small ones between them; the former are freed, so that the latter keep the gaps apart.
PROGRAM = """
import ctypes
import random
from cope_jax.training.supervision.heap import Mallinfo, close_gaps, keep_freed_memory

if {keep}:
    keep_freed_memory()
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


def run(*, keep: bool) -> list[str]:
    """Runs the program, with or without `keep_freed_memory`, and returns the lines that it prints."""
    program = PROGRAM.replace("{keep}", str(keep))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_closing_gaps_returns_their_memory_and_keeps_blocks_in_use():
    sizes, reused, intact, again = run(keep=True)
    closed, made, left, given_back = map(int, sizes.split())
    assert made > 150e6
    assert closed > 0.8 * made
    assert left < 0.2 * made
    assert given_back > 0.7 * made
    assert reused == "False"
    assert intact == "True"
    assert int(again) < 1e6


def test_default_heaps_are_left_alone():
    sizes, reused, _, again = run(keep=False)
    assert sizes.startswith("0 ")
    assert (reused, again) == ("True", "0")
