"""Runs the whole pipeline: from a release to the tables of results.

    cope demo [--videos] [--root=DIR] [OPTION…]   on a synthetic release, with --videos of video files
    cope grocery PATH [--root=DIR] [OPTION…]      on a checkout of GroceryStoreDataset

Data go to DIR/data, the run to DIR/runs; DIR is the current folder by default. Options go to training, for example
--config.train.steps=200, except --train_products=N, --test_products=N, --image_side=PIXELS, --seed=N and --recipe=N of
the demo, which go to the synthetic release. If it is interrupted, run the same command again: it resumes.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from cope_jax import CONFIG_ROOT, INSTALLED

RELEASE_OPTIONS = ("--train_products=", "--test_products=", "--image_side=", "--seed=", "--recipe=")


def announce(text: str) -> None:
    """Prints the title of a step."""
    print(f"\n▸ {text}", flush=True)


def run(module: str, *arguments: str) -> None:
    """Runs a step in a process of its own and exits with its code if it fails.

    SIGTERM is passed on to the step. An interrupt from the terminal reaches it directly.
    """
    safe_path = ["-P"] if INSTALLED else []  # no modules, such as `configs`, from the current folder
    process = subprocess.Popen([sys.executable, *safe_path, "-m", module, *arguments])

    def pass_on(number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    if code := process.wait():
        sys.exit(code if code > 0 else 128 - code)


def run_pipeline(name: str, config_name: str, source: Sequence[str], root: Path, options: Sequence[str]) -> None:
    """Builds with the flags in `source`, trains with those in `options` and evaluates."""
    data, workdir = root / "data" / name, root / "runs" / name
    announce(f"building array records in {data}")
    run("cope_jax", "build", *source, f"--data_dir={data}")
    announce(f"training configs/{config_name}.py in {workdir}")
    config = [
        f"--config={CONFIG_ROOT}/configs/{config_name}.py",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data}",
    ]
    run("cope_jax", "train", *config, *options)
    announce("evaluating: trained / untrained")
    run("cope_jax", "eval", f"--workdir={workdir}", "--reuse")
    print(f"\nwork directory: {workdir}")


def demo(root: Path, options: Sequence[str]) -> None:
    """Runs the pipeline on a synthetic release."""
    release = root / "data/demo/release"
    announce(f"writing a synthetic release to {release}")
    run("cope_jax", "synthetic", f"--out={release}", *(word for word in options if word.startswith(RELEASE_OPTIONS)))
    training_options = [word for word in options if not word.startswith((*RELEASE_OPTIONS, "--videos"))]
    if "--videos" not in options:
        run_pipeline("demo", "demo", [f"--release={release}"], root, training_options)
        return
    announce(f"writing its clips as videos to {release}/videos")
    run("data_prep.synthetic.videos", f"--release={release}")
    catalog = root / "data/demo_videos/catalog"
    run("cope_jax", "table", f"--table={release}/videos/items.csv", f"--images={release}", f"--out={catalog}")
    source = [f"--catalog={catalog}", f"--images={release}"]
    run_pipeline("demo_videos", "demo", source, root, training_options)


def grocery(checkout: Path, root: Path, options: Sequence[str]) -> None:
    """Runs the pipeline on a checkout of GroceryStoreDataset."""
    if not checkout.is_dir():
        sys.exit(f"grocery: no folder {checkout}: give the path of a checkout of GroceryStoreDataset")
    release = root / "data/grocery/release"
    announce(f"converting {checkout} into a release in {release}")
    run("data_prep.sources.grocery", f"--checkout={checkout}", f"--out={release}", "--test_list=val")
    run_pipeline("grocery", "grocery", [f"--release={release}"], root, options)


def main(name: str, *words: str) -> None:
    """Reads the options and runs one of the pipelines."""
    if any(word.startswith("--help") for word in words):
        print(__doc__)
        return
    roots = [word.partition("=")[2] for word in words if word.startswith("--root=")]
    root = Path(roots[-1] if roots else ".")
    options = [word for word in words if not word.startswith("--root=")]
    if name == "demo":
        demo(root, options)
    elif not options or options[0].startswith("--"):
        sys.exit("grocery: give the path of a checkout of GroceryStoreDataset: cope grocery PATH")
    else:
        grocery(Path(options[0]), root, options[1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
