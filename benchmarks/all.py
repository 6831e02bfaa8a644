"""Runs all benchmarks: `python -m benchmarks.all [--quick]`.

Each runs in a process of its own, so the others continue if one fails; the exit code is then 1. With --quick the sizes
are small: all together take less than ten minutes on two cores and show that the benchmarks work, not how fast the code
is. The last lines are a table and one line of JSON: for each benchmark its seconds and its result, or its error.
`ablation`, which trains many times, `hardware` and `finetune_plans`, which need XLA's compilers for accelerators,
`device`, which needs one, `serve`, `fuzz` and `recording`, which need a run, and `killed_commands`, which takes an
hour, are not included.
"""

import json
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import app, flags

from data_prep.common.process_pool import usable_cores

FLAGS = flags.FLAGS


class Benchmark(NamedTuple):
    """How to run a benchmark.

    Attributes:
        quick: Flags for small sizes.
        shown: Keys of the result to show in the table.
    """

    quick: tuple[str, ...]
    shown: tuple[str, ...]


BENCHMARKS = {
    "catalog": Benchmark(("--scale=0.002",), ("rows_per_s", "peak_rss_bytes")),
    "abo": Benchmark(("--scale=0.002",), ("seconds", "peak_rss_bytes")),
    "build": Benchmark(("--mb=10", "--rounds=1"), ("ratio", "rss_growth")),
    "download": Benchmark(("--images=400", "--rounds=1"), ("images_per_s", "ratio")),
    "video": Benchmark(("--seconds=3", "--minutes=1", "--clips=2", "--frames=4", "--rounds=1"), ("short_720p_4",)),
    "near_duplicates": Benchmark(
        ("--copies=50", "--images=5000"), ("found", "false_pairs", "seconds", "peak_rss_bytes")
    ),
    "loss": Benchmark(("--chunk=64", "--rounds=1"), ("growth_2_to_16", "ring_over_dense_time_at_8")),
    "grad_cache": Benchmark(("--ratios=4", "--rounds=1"), ("microbatch_bytes",)),
    "parity": Benchmark(("--side=64",), ("largest_forward", "largest_gradient")),
    "retrieval": Benchmark(("--fraction=0.1", "--rounds=1"), ("ratio", "peak_rss_bytes")),
    "chaos": Benchmark(("--kills=1", "--steps=6"), ("differing_bytes", "restarts")),
    "input_pipeline": Benchmark(("--quick",), ("ratio_to_torch", "ratio_to_decode", "resume_seconds")),
    "step": Benchmark(("--quick",), ("ratio_to_torch", "mfu", "dispatch_ms")),
    "embed": Benchmark(("--quick",), ("ratio", "both_items_per_s")),
    "search": Benchmark(("--items=20000",), ("recall_at_10", "bytes_per_item", "rate_over_flat")),
}


def run(name: str, *, quick: bool) -> dict[str, Any]:
    """Runs a benchmark and returns its seconds and its "result", or the end of its "error" output."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *(BENCHMARKS[name].quick if quick else ())]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    outcome: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
    if done.returncode:
        return outcome | {"error": f"exit code {done.returncode}: {done.stderr[-2000:].strip()}"}
    return outcome | {"result": json.loads(done.stdout.splitlines()[-1])}


def format_row(name: str, outcome: dict[str, Any]) -> str:
    """Returns the row of a benchmark in the table."""
    if "error" in outcome:
        summary = f"FAILED  {outcome['error'].splitlines()[-1]}"
    else:
        result = outcome["result"]
        summary = ", ".join(f"{key} {result[key]:,}" for key in BENCHMARKS[name].shown if key in result)
    return f"{name:15} {outcome['seconds']:7.1f} s  {summary}"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_bool("quick", False, "Use small sizes.")
    flags.DEFINE_list("only", None, "Names of the benchmarks to run; default: all.")


def main(_: list[str]) -> None:
    """Runs the benchmarks and prints their results; exits with 1 if one fails."""
    names = FLAGS.only or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        raise app.UsageError(f"--only names {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    outcomes = {}
    for number, name in enumerate(names, start=1):
        print(f"{number} of {len(names)}: {name} …", flush=True)
        outcomes[name] = run(name, quick=FLAGS.quick)
        if "error" in outcomes[name]:
            print(outcomes[name]["error"], file=sys.stderr, flush=True)
    print("\n" + "\n".join(format_row(name, outcome) for name, outcome in outcomes.items()))
    print(json.dumps({"cores": usable_cores(), "quick": FLAGS.quick, "benchmarks": outcomes}))
    if any("error" in outcome for outcome in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    app.run(main)
