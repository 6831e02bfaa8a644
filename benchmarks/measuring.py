"""Helpers shared by the benchmarks: timing, ratios, and measurements in a separate process."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any


def time_call(call: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def summarize_ratio(name: str, ours: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Summarizes ours / other, measured in the same rounds: the median of the ratios, the smallest and the largest.

    >>> summarize_ratio("ratio", [2, 3, 8], [2, 2, 2])
    {'ratio': 1.5, 'ratio_spread': [1.0, 4.0]}
    """
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    return {name: round(median(ratios), 3), f"{name}_spread": [round(min(ratios), 3), round(max(ratios), 3)]}


def peak_memory() -> int:
    """Returns the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def planned_bytes(program: Any) -> int:
    """Returns the peak memory on a device that XLA plans for a compiled program: arguments, results and temporaries."""
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held + memory.temp_size_in_bytes


def run_in_process(benchmark: str, *options: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs a benchmark in a process of its own and returns the JSON of its last line.

    Args:
        benchmark: Name of a module in this folder.
        *options: Flags of the benchmark.
        environment: Environment variables to set in addition to those of this process.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *options]
    variables = os.environ | (environment or {})
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
