"""The C library's heap: what compiling leaves in it must not be in the way of the steps."""

import ctypes
import mmap
import os

LARGEST, SMALLEST = 1 << 26, 1 << 15  # bytes of the gaps that are looked for; closing smaller ones brought nothing
MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
DONT_NEED = 4  # madvise: the pages may go, the addresses stay taken


class Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO)


def close_gaps() -> int:
    """Takes the gaps in the heap out of use for good, and gives their memory back to the system.

    Compiling leaves thousands of gaps of all sizes. Where all threads share one heap (`MALLOC_ARENA_MAX=1`, as run.sh
    sets it for training on processors), glibc walks over them for every buffer of 32 KiB or more, some 2,600 a step: up
    to a fifth of its time (benchmarks/README.md). For where nothing computes just then. Does nothing where threads have
    heaps of their own or the C library is another.

    Returns:
        The bytes of the gaps.
    """
    libc = ctypes.CDLL(None)
    if os.environ.get("MALLOC_ARENA_MAX") != "1" or not hasattr(libc, "mallinfo2"):
        return 0
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallinfo2.restype = Mallinfo
    # Behind the last block in use lies the open end of the heap, which new blocks shall come from.
    end, closed, size = libc.sbrk(0) - libc.mallinfo2().keepcost - mmap.PAGESIZE, 0, LARGEST
    while size >= SMALLEST:
        block = libc.malloc(size)
        if block is None or block >= end:  # no gap of this size is left
            libc.free(block)
            size //= 2
            continue
        first, last = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE, (block + size) // mmap.PAGESIZE * mmap.PAGESIZE
        libc.madvise(first, last - first, DONT_NEED)
        closed += size
    return closed
