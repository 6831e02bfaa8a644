"""Plans the memory of fine-tuning SigLIP 2 on devices that need not be there: `python -m benchmarks.finetune_plans`.

Compiles a training step for each size and method, on one H100 and on eight TPUs v5e, of 32 products per device with a
page of one image and a video of eight frames, in bfloat16 and with `remat=block`, which `configs/catalog.py` sets.
Weights are not needed, only sizes. Each compilation takes a minute or two of a core; those for TPUs have JAX's lowest
optimization effort, which halves the time. Plans are kept in `benchmarks/results/finetune_plans.json`.
Prints the table in docs/hardware.md; the last line is JSON.

This file is also the config of a plan: `--config=benchmarks/finetune_plans.py:B/16`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app
from ml_collections import ConfigDict

from configs import default
from data_prep.common.files import atomic_write

PLANS = Path(__file__).parent / "results/finetune_plans.json"
# Width, layers, heads, width of hidden layers, sides of images and patches of google/siglip2-{base,so400m}-….
SIZES = {"B/16": (768, 12, 12, 3072, 224, 16), "So400m/14": (1152, 27, 16, 4304, 224, 14)}
METHODS = ("full", "lora", "frozen")
TARGETS = ("h100:1", "v5e:2x4")
GIB, PRODUCTS = 2**30, 32  # products per device
SHARDED = "--config.mesh.fsdp=8"


def get_config(size: str) -> ConfigDict:
    """Returns the config of a run that would start from SigLIP 2 of a size."""
    width, depth, heads, hidden, image, patch = SIZES[size]
    config: Any = default.get_config()
    config.data.domains = ConfigDict({"page": "image", "video": "clip"})
    config.data.frames = config.eval.frames = ConfigDict({"page": 1, "video": 8})
    fields = {"family": "siglip", "width": width, "depth": depth, "heads": heads, "output_width": width}
    fields |= {"mlp_width": hidden if hidden != 4 * width else 0, "activation": "gelu_tanh"}
    config.model.vision.update(
        fields
        | {"patch_size": patch, "pooling": "attention", "normalisation": "siglip", "across_frames": "gated"}
        | {"cross_frame": False, "integration_depth": 0}
    )
    config.model.text.update(fields | {"pooling": "last", "dropout": 0.0})
    config.update_from_flattened_dict(
        {
            "data.image_size": image,
            "data.text_length": 64,
            "data.vocab_size": 256_000,
            "model.embedding": width,
            "model.dtype": "bfloat16",
            "model.remat": "block",
            "model.text_domains": ("page", "video"),
            "model.fusion.kind": "aligned",
            "optimizer.rate": 1e-5,
        }
    )
    return config.lock()


def plan(size: str, method: str, target: str, *flags: str) -> dict[str, Any]:
    """Returns the bytes per device, the share of trained parameters, and the additional flags of a plan.

    If XLA refuses the program for its memory, the parameters are sharded over eight devices.
    """
    devices = 1 if target.endswith(":1") else 8
    effort = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"} if target.startswith("v") else {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "cope_jax", "train", f"--config={__file__}:{size}", "--dry_run"]
        command += [f"--target={target}", f"--json={out}", f"--config.finetune.method={method}", *flags]
        done = subprocess.run(
            [*command, f"--config.train.batch_size={PRODUCTS * devices}"],
            capture_output=True,
            text=True,
            env=os.environ | effort,
        )
        if done.returncode and "does not fit" in done.stderr and SHARDED not in flags and devices > 1:
            return plan(size, method, target, SHARDED)
        if done.returncode:
            raise RuntimeError(f"{size} {method} on {target}: {done.stderr}")
        result = json.loads(out.read_text(encoding="utf-8"))
    if result["target"] != target:
        raise ValueError(f"{target} needs requirements-accelerators.txt: {done.stdout.splitlines()[-1]}")
    return {"bytes": result["bytes_per_device"], "trained": result["trained"], "flags": flags}


def define_flags() -> None:
    """Defines no flags."""


def main(_: list[str]) -> None:
    """Compiles the plans that are missing, and prints the table."""
    plans = json.loads(PLANS.read_text(encoding="utf-8")) if PLANS.exists() else {}
    for size in SIZES:
        for method in METHODS:
            for target in TARGETS:
                if (name := f"{size} {method} {target}") not in plans:
                    plans[name] = plan(size, method, target)
                    with atomic_write(PLANS, "w") as file:
                        file.write(json.dumps(plans, indent=1) + "\n")
                    print(name, plans[name], file=sys.stderr, flush=True)
    print("| SigLIP 2 | method | trained | one H100: GiB | eight v5e: GiB each |\n|---|---|---|---|---|")
    for size in SIZES:
        for method in METHODS:
            found = [plans[f"{size} {method} {target}"] for target in TARGETS]
            cells = [" ".join([f"{own['bytes'] / GIB:.1f}", *own.get("flags", ())]) for own in found]
            print(f"| {size} | `{method}` | {found[0]['trained']:.1%} | {' | '.join(cells)} |")
    print(json.dumps(plans))


if __name__ == "__main__":
    app.run(main)
