"""Builds a TFDS data set, `rope` or of another name, from a catalog and its images.

    python -m data_prep.build --catalog=DIR --images=DIR [--images=DIR …] --data_dir=DIR [--splits=train,test]
        [--name=rope] [--max_side=256]
    python -m data_prep.build --release=DIR --data_dir=DIR [--images=DIR …] [--splits=train,test]

The second form first makes the catalog of the release in <data_dir>/catalog. Images may be stored in folders of any
depth, in the shards of a download, or in both. Missing and invalid images are dropped and listed in
<data_dir>/<name>/dropped.jsonl; more than --max_missing of them are an error. With --max_side=256, larger images are
shrunk once, here, so that training need not decode whole photos at every step.

Of each video, --frames_per_clip frames are stored as JPEGs, evenly spaced, or --fps frames per second, or with --scenes
the middle of each scene; their longer side has --max_side pixels, by default 384. Black frames and those that equal the
one before are skipped, and counted in the summary (see `FrameChoice`). If a build is interrupted, run the same
command again: it resumes. If the data sets are finished, it does nothing.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags, logging

from data_prep.catalog.files import Catalog
from data_prep.catalog.release_parser import PREFIXES
from data_prep.common.cli import run
from data_prep.common.files import atomic_write, lock_file, read_json
from data_prep.common.text_table import text_table
from data_prep.images.sources import split_folders
from data_prep.records.dropped import DROPPED_FILE, MAX_MISSING, copy_lists
from data_prep.records.inputs import Inputs, inputs_from_release
from data_prep.records.runners import Runner, beam_runner, local_runner
from data_prep.rope.rope_dataset_builder import NAME, Builder
from data_prep.videos.reader import MAX_FRAMES, FrameChoice

FLAGS = flags.FLAGS
SUMMARY_FILE = "build_summary.json"


def build(
    inputs: Inputs,
    data_dir: Path,
    *,
    name: str = NAME,
    processes: int | None = None,
    beam_options: Sequence[str] | None = None,
    max_missing: float = MAX_MISSING,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Builds what is missing, and writes build_summary.json and dropped.jsonl to <data_dir>/<name>.

    Args:
        inputs: Inputs of the build.
        data_dir: TFDS's data folder.
        name: Name of the data set.
        processes: Number of processes; None is one per core.
        beam_options: Options of Apache Beam, which then writes the shards instead.
        max_missing: Largest fraction of the images of a split's domain that may be missing or invalid.
        report: Called with lines of progress.

    Returns:
        The summary: {"fingerprint", "seconds" (of the run that finished the build), "splits": split → domain →
        {items, frames: {in, kept, dropped: reason → count}, bytes}, and split → "product"}.

    Raises:
        ValueError: The inputs are invalid or other than those of a finished data set, too many images are missing, or
            another process is building in the same folder.
    """
    start = time.monotonic()
    folder = data_dir.absolute() / name
    inputs.check()

    def builders(runner: Runner | None = None) -> dict[str, Builder]:
        options = {"inputs": inputs, "runner": runner, "max_missing": max_missing, "report": report}
        configs = (*inputs.opened_catalog.domains, "product")
        return {
            config: Builder(config=config, dataset_name=name, data_dir=folder.parent, **options) for config in configs
        }

    # Checks all before building one, so that nothing is added to the data of other inputs.
    built = [builder.is_built_from(inputs) for builder in builders().values()]
    if all(built) and (folder / SUMMARY_FILE).exists():
        report(f"{folder} is already built from {inputs.catalog}: nothing to do")
        return read_json(
            folder / SUMMARY_FILE, keys=("splits",), remedy="remove it and run the same command to write it again"
        )
    runner = local_runner(processes) if beam_options is None else contextlib.nullcontext(beam_runner(beam_options))
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / ".lock", f"is building {folder}", remove=True), runner as shared:
        prepared = builders(shared)  # share a pool, which takes seconds to start
        for builder in prepared.values():
            builder.download_and_prepare()
        return _write_summary(folder, inputs, prepared, time.monotonic() - start, report)


def _write_summary(
    folder: Path, inputs: Inputs, builders: Mapping[str, Builder], seconds: float, report: Callable[[str], None]
) -> dict[str, Any]:
    copy_lists(folder / DROPPED_FILE, [Path(builders[domain].data_dir) for domain in inputs.opened_catalog.domains])
    summary = {
        "fingerprint": inputs.fingerprint,
        "seconds": round(seconds, 1),
        "splits": {
            split: {name: builder.counts[split] for name, builder in builders.items()} for split in inputs.splits
        },
    }
    with atomic_write(folder / SUMMARY_FILE, "w") as file:
        file.write(json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
    report(f"built {folder}; summary in {folder / SUMMARY_FILE}")
    if (folder / DROPPED_FILE).stat().st_size:
        report(f"dropped images are listed in {folder / DROPPED_FILE}")
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """Returns the summary as a table with one line per domain and split."""
    rows: list[tuple[str, ...]] = [("split", "domain", "items", "kept", "frames", "kept", "MB", "dropped")]
    for split, parts in summary["splits"].items():
        for domain in parts:
            if domain == "product":
                continue
            items, frames, size = (parts[domain][key] for key in ("items", "frames", "bytes"))
            dropped = [f"{count} items: {reason}" for reason, count in items["dropped"].items()]
            dropped += [f"{count} frames: {reason}" for reason, count in frames["dropped"].items()]
            counts = (items["in"], items["kept"], frames["in"], frames["kept"])
            clips = parts[domain].get("clips", {})
            dropped += [f"{clips[key]} frames: {key}" for key in ("black", "duplicate") if clips.get(key)]
            rows.append((split, domain, *map(str, counts), f"{size / 1e6:.1f}", ", ".join(dropped) or "none"))
        products = parts["product"]["products"]
        rows.append((split, "product", str(products["in"]), str(products["kept"]), "", "", "", ""))
    return text_table(rows, left=(0, 1, 7))


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("catalog", None, "Folder of a catalog.")
    flags.DEFINE_string("release", None, "Folder with text files, whose catalog is made in <data_dir>/catalog.")
    flags.DEFINE_multi_string(
        "images", None, "Folder with images or the shards of a download; may be repeated. Default: <release>/images."
    )
    flags.DEFINE_string("data_dir", None, "Folder for the data set, which is written to <data_dir>/<name>.")
    flags.DEFINE_string("name", NAME, "Name of the data set.")
    flags.DEFINE_integer("max_side", None, "Shrink images whose longer side is larger, in pixels.", lower_bound=1)
    flags.DEFINE_integer("frames_per_clip", FrameChoice.frames_per_clip, "Frames of each video.", 1, MAX_FRAMES)
    flags.DEFINE_float("fps", None, "Frames per second of each video, instead of --frames_per_clip.", 0.001, 1000)
    flags.DEFINE_bool("scenes", False, "Take the middle of the longest --frames_per_clip scenes of each video.")
    flags.DEFINE_integer("quality", FrameChoice.quality, "JPEG quality of the frames of videos.", 1, 100)
    flags.DEFINE_list("splits", None, "Splits to build. Default: train, test and all others of a catalog.")
    for split, prefix in PREFIXES.items():
        flags.DEFINE_string(f"{split}_prefix", prefix, f"Prefix of the file names of split {split} in a release.")
    flags.DEFINE_float(
        "max_missing", MAX_MISSING, "Largest fraction of a domain's images that may be missing or invalid.", 0, 1
    )
    flags.DEFINE_integer("processes", None, "Number of processes. Default: one per core.", lower_bound=1)
    flags.DEFINE_list("beam_pipeline_options", None, "Write shards with Apache Beam and these options: runner=…")
    flags.mark_flags_as_mutual_exclusive(["catalog", "release"], required=True)
    flags.mark_flag_as_required("data_dir")


def main() -> int:
    logging.set_verbosity(logging.ERROR)  # TFDS warns about each data set that is not built yet
    data_dir, report = Path(FLAGS.data_dir), partial(print, flush=True)
    try:
        summary = build(
            _inputs(data_dir, report),
            data_dir,
            name=FLAGS.name,
            processes=FLAGS.processes,
            beam_options=FLAGS.beam_pipeline_options,
            max_missing=FLAGS.max_missing,
            report=report,
        )
    except KeyboardInterrupt:
        print("build: interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    print(format_summary(summary))
    return 0


def _inputs(data_dir: Path, report: Callable[[str], None]) -> Inputs:
    images = split_folders(FLAGS.images or ())
    if FLAGS.catalog:
        splits = FLAGS.splits or dict.fromkeys((*Catalog(Path(FLAGS.catalog)).splits, *PREFIXES))
        names = ("frames_per_clip", "fps", "scenes", "quality")
        choice = FrameChoice(**{name: getattr(FLAGS, name) for name in names})
        if FLAGS.max_side:
            choice = dataclasses.replace(choice, max_side=FLAGS.max_side)
        return Inputs(Path(FLAGS.catalog), tuple(images), tuple(splits), FLAGS.max_side, choice)
    prefixes = {split: getattr(FLAGS, f"{split}_prefix") for split in PREFIXES}
    return inputs_from_release(
        Path(FLAGS.release),
        data_dir,
        images=images,
        splits=FLAGS.splits or tuple(PREFIXES),
        prefixes=prefixes,
        max_side=FLAGS.max_side,
        report=report,
    )


if __name__ == "__main__":
    define_flags()
    run("build", main)
