"""How many cores there are to work with."""

import os


def cores() -> int:
    """The number of cores that this process may use; where the system does not tell (macOS), of all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
