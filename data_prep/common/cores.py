"""The number of processor cores."""

import os


def usable_cores() -> int:
    """Returns the number of cores this process may use, or of all cores on systems that do not restrict it (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
