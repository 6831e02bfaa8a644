"""Plans the memory of a training step on GPUs and TPUs that need not be there: `python -m benchmarks.hardware`.

Compiles the step of --config for each kind of device (requirements-accelerators.txt) and way to train, at two batch
sizes. The bytes of other batch sizes, and the largest batch that fits, are interpolated linearly: XLA may arrange them
a little differently. All GPUs are planned as one H100 with another memory, and TPUs as a slice of eight.

Writes a Markdown table to --out; the last line is JSON: for each row the fixed GiB, the GiB per product, and the
largest batch per device. Each compilation takes half a minute to two minutes of a core.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from cope_jax.parallel.targets import GIB, GPU_PREALLOCATION, HARDWARE
from data_prep.common.files import atomic_write

FLAGS = flags.FLAGS
GPUS = (24, 40, 80, 141)  # GB on the label; about 1.2% less is usable
TARGETS = {"GPU": "h100:1", "v5e": "v5e:2x4", "v6e": "v6e:2x4"}
SIZES = {"GPU": (32, 128), "v5e": (8, 16), "v6e": (16, 32)}  # products per device
CACHED_SIZES = (32, 256)
MICROBATCH = 8  # per device
MODES = {
    "all parameters": (),
    "gradient caching": (),
    "frozen encoders": ("--config.optimizer.groups=(('^model/(vision|text)/', 0.0), ('', 1.0))",),
}


class Line(NamedTuple):
    """Bytes per device as a function of the products per device."""

    fixed: float
    per_product: float

    def largest(self, usable: float) -> int:
        """Returns the largest batch per device that fits, a multiple of 8; 0 if even that does not."""
        return max(0, int((usable - self.fixed) / self.per_product) // 8 * 8)


def plan(target: str, mode: str, batch: int) -> int | None:
    """Returns the bytes per device of a step with a batch per device; None if the compiler refuses the program."""
    devices = 1 if target.endswith(":1") else 8
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "cope_jax", "train", f"--config={FLAGS.config}", "--dry_run"]
        command += [f"--target={target}", f"--json={out}", f"--config.train.batch_size={batch * devices}"]
        command += [f"--config.losses.classifier.classes={FLAGS.classes}", *MODES[mode]]
        microbatch = MICROBATCH * devices if mode == "gradient caching" else 0
        command += [f"--config.train.microbatch={microbatch}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            if "does not fit" in done.stderr:
                return None
            raise RuntimeError(done.stderr)
        result = json.loads(out.read_text())
    if result["target"] != target:
        raise ValueError(f"{target} needs requirements-accelerators.txt: {done.stdout.splitlines()[-1]}")
    return result["bytes_per_device"]


def fit(kind: str, mode: str) -> Line | None:
    """Returns the line through the plans of two batch sizes; None if one of them does not fit."""
    sizes = CACHED_SIZES if mode == "gradient caching" else SIZES[kind]
    points = [(size, plan(TARGETS[kind], mode, size)) for size in sizes]
    print(kind, mode, points, flush=True)
    (x0, y0), (x1, y1) = points
    if y0 is None or y1 is None:
        return None
    per_product = (y1 - y0) / (x1 - x0)
    return Line(y0 - per_product * x0, per_product)


def usable_bytes() -> dict[str, tuple[str, float]]:
    """Returns for each column its kind of device and the bytes that programs get by default."""
    gpus = {f"GPU {size} GB": ("GPU", HARDWARE["h100"].memory * size / 80 * GPU_PREALLOCATION) for size in GPUS}
    return gpus | {kind: (kind, HARDWARE[kind].memory) for kind in ("v5e", "v6e")}


def markdown(fits: dict[str, dict[str, Line | None]]) -> str:
    """Returns the table: for each device and mode the largest batch and its GiB, and for each program its line."""
    lines = [["device", *(f"{mode}: products per device" for mode in MODES)], ["---"] * (1 + len(MODES))]
    for device, (kind, usable) in usable_bytes().items():
        cells = [_largest_batch(fits[kind][mode], usable) for mode in MODES] if kind in fits else []
        lines += [[f"{device} ({usable / GIB:.1f} GiB usable)", *cells]] if cells else []
    for kind, of_modes in fits.items():
        equations = [
            f"{line.fixed / GIB:.2f} + {line.per_product / GIB:.4f} · products" if line else "–"
            for line in of_modes.values()
        ]
        lines.append([f"GiB on a {kind}", *equations])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _largest_batch(line: Line | None, usable: float) -> str:
    size = line.largest(usable) if line else 0
    return f"{size} ({(line.fixed + line.per_product * size) / GIB:.1f} GiB)" if line and size else "does not fit"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("config", "configs/cope_rope.py", "Config file.")
    flags.DEFINE_integer("classes", 187_431, "Number of training products.")
    flags.DEFINE_list("kinds", list(TARGETS), "Kinds of devices.")
    flags.DEFINE_string("out", None, "File for the table; default: only print it.")


def main(_: list[str]) -> None:
    """Compiles, and prints and writes the table."""
    fits: dict[str, dict[str, Line | None]] = {kind: {} for kind in FLAGS.kinds}
    for mode in MODES:
        for kind in FLAGS.kinds:
            fits[kind][mode] = fit(kind, mode)
    table = markdown(fits)
    print(table)
    if FLAGS.out:
        with atomic_write(Path(FLAGS.out), "w") as file:
            file.write(table + "\n")
    print(
        json.dumps({kind: {mode: line and line._asdict() for mode, line in row.items()} for kind, row in fits.items()})
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
