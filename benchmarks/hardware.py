"""Plans the memory of a training step on GPUs and TPUs that need not be there: `python -m benchmarks.hardware`.

Compiles the step of `configs/cope_rope.py` for each kind of device (requirements-accelerators.txt) and way to train, at
two batch sizes. The bytes of other batch sizes, and the largest batch that fits, follow from the line through them,
also far beyond them: XLA may arrange memory differently there. All GPUs are planned as one H100 with another memory,
and TPUs as a slice of eight.

Each compilation takes half a minute to two minutes of a core. Plans are kept in `benchmarks/results/hardware.json`;
remove it to compile all of them again. The table replaces the one in docs/hardware.md. The last line is JSON: for each
kind of device and way to train the fixed bytes and the bytes per product.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from cope_jax.parallel.targets import GIB, GPU_PREALLOCATION, HARDWARE
from data_prep.common.files import atomic_write

FLAGS = flags.FLAGS
PLANS = Path(__file__).parent / "results/hardware.json"
PAGE = Path(__file__).parents[1] / "docs/hardware.md"
TABLE = re.compile(r"(?<=<!-- python -m benchmarks.hardware -->\n).*?(?=<!-- end -->)", re.DOTALL)
CONFIG, CLASSES = "configs/cope_rope.py", 187_431
GPUS = (24, 40, 80, 141)  # GB
TARGETS = {"GPU": "h100:1", "v5e": "v5e:2x4", "v6e": "v6e:2x4"}
SIZES = {"GPU": (32, 128), "v5e": (8, 16), "v6e": (16, 32)}  # products per device
CACHED, CACHED_SIZES = "gradient caching", (32, 256)
MICROBATCH = 8  # products per device
MODES = {
    "all parameters": (),
    CACHED: (),
    "frozen encoders": ("--config.optimizer.groups=(('^model/(vision|text)/', 0.0), ('', 1.0))",),
}


class Line(NamedTuple):
    """Bytes per device as a function of the products per device."""

    fixed: float
    per_product: float

    @classmethod
    def through(cls, points: dict[str, int]) -> "Line":
        """Returns the line through two plans, products → bytes."""
        (x0, y0), (x1, y1) = ((int(size), plan) for size, plan in points.items())
        per_product = (y1 - y0) / (x1 - x0)
        return cls(y0 - per_product * x0, per_product)

    def largest(self, usable: float) -> int:
        """Returns the largest batch per device that fits, a multiple of 8; 0 if even that does not."""
        return max(0, int((usable - self.fixed) / self.per_product) // 8 * 8)


def plan(target: str, mode: str, batch: int) -> int:
    """Returns the bytes per device of a step with a batch per device."""
    devices = 1 if target.endswith(":1") else 8
    microbatch = MICROBATCH * devices if mode == CACHED else 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "cope_jax", "train", f"--config={CONFIG}", "--dry_run", f"--target={target}"]
        command += [f"--json={out}", f"--config.losses.classifier.classes={CLASSES}", *MODES[mode]]
        command += [f"--config.train.batch_size={batch * devices}", f"--config.train.microbatch={microbatch}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{mode} on {target} with {batch} products per device: {done.stderr}")
        result = json.loads(out.read_text(encoding="utf-8"))
    if result["target"] != target:
        raise ValueError(f"{target} needs requirements-accelerators.txt: {done.stdout.splitlines()[-1]}")
    return result["bytes_per_device"]


def usable_bytes() -> dict[str, tuple[str, float]]:
    """Returns for each device its kind and the bytes that programs get by default."""
    gpus = {f"GPU {size} GB": ("GPU", HARDWARE["h100"].memory * size / 80 * GPU_PREALLOCATION) for size in GPUS}
    return gpus | {f"TPU {kind}": (kind, HARDWARE[kind].memory) for kind in ("v5e", "v6e")}


def markdown(lines: dict[str, dict[str, Line]]) -> str:
    """Returns the table: for each device and mode the largest batch and its GiB, then the line of each kind."""
    rows = [["device", *(f"{mode}: products per device" for mode in MODES)], ["---"] * (1 + len(MODES))]
    for device, (kind, usable) in usable_bytes().items():
        cells = [_largest_batch(lines[kind].get(mode), usable) for mode in MODES]
        rows.append([f"{device} ({usable / GIB:.1f} GiB usable)", *cells])
    for kind in TARGETS:
        found = [lines[kind].get(mode) for mode in MODES]
        cells = [f"{x.fixed / GIB:.2f} + {x.per_product / GIB:.4f} · products" if x else "not planned" for x in found]
        rows.append([f"GiB on a {kind}", *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _largest_batch(line: Line | None, usable: float) -> str:
    if line is None:
        return "not planned"
    size = line.largest(usable)
    return f"{size} ({(line.fixed + line.per_product * size) / GIB:.1f} GiB)" if size else "does not fit"


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_bool("compile", True, "Compile the plans that are missing; --nocompile only rewrites the table.")


def main(_: list[str]) -> None:
    """Compiles, and prints and writes the table."""
    plans = json.loads(PLANS.read_text(encoding="utf-8")) if PLANS.exists() else {}
    for mode in MODES if FLAGS.compile else ():
        for kind, target in TARGETS.items():
            points = plans.setdefault(kind, {}).setdefault(mode, {})
            for size in CACHED_SIZES if mode == CACHED else SIZES[kind]:
                if str(size) not in points:
                    points[str(size)] = plan(target, mode, size)
                    print(f"{mode} on {target}, {size} products: {points[str(size)] / GIB:.2f} GiB", flush=True)
                    with atomic_write(PLANS, "w") as file:
                        file.write(json.dumps(plans, indent=1) + "\n")
    lines = {
        kind: {mode: Line.through(points) for mode, points in plans.get(kind, {}).items() if len(points) == 2}
        for kind in TARGETS
    }
    table = markdown(lines)
    with atomic_write(PAGE, "w") as file:
        file.write(TABLE.sub(lambda _: f"\n{table}\n\n", PAGE.read_text(encoding="utf-8")))
    print(table)
    print(json.dumps({kind: {mode: x._asdict() for mode, x in of_kind.items()} for kind, of_kind in lines.items()}))


if __name__ == "__main__":
    define_flags()
    app.run(main)
