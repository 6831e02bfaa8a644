"""Builds the four TFDS data sets of `rope` from a catalog and its images.

    python -m data_prep.build --catalog=DIR --images=DIR[,DIR…] --data_dir=DIR [--splits=train,test]
    python -m data_prep.build --release=DIR --data_dir=DIR [--images=DIR[,DIR…]] [--splits=train,test]

The second makes the catalog of the release first, in <data_dir>/catalog. Images lie in folders of any depth or in
the shards of a download, or some here and some there. Killed at any point, the same command goes on where it
was; over a finished build it says so and does nothing.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from data_prep.catalog.files import CatalogError
from data_prep.catalog.release import PREFIXES, ReleaseError
from data_prep.common.domains import DOMAINS
from data_prep.images.sources import ImageSourceError
from data_prep.records import schema as records
from data_prep.records.inputs import BuildError, Inputs, release_inputs
from data_prep.records.local_pool import local_runner
from data_prep.rope.rope_dataset_builder import Builder

FLAGS = flags.FLAGS
SUMMARY_FILE = "build_summary.json"


def build(
    inputs: Inputs,
    data_dir: Path,
    *,
    processes: int | None = None,
    beam_options: Sequence[str] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Builds what is not built yet; the summary goes to <data_dir>/rope/build_summary.json and is returned.

    Args:
      inputs: what to build from.
      data_dir: TFDS's data folder.
      processes: size of the pool; None is one for each core.
      beam_options: options of Apache Beam, which then writes the shards in place of the pool.
      report: takes lines of progress.

    Returns:
      {"fingerprint", "seconds" (of the run that ended the build), "splits": split → domain → {items, frames:
      {in, kept, dropped: reason → count}, bytes}, and split → "product"}.

    Raises:
      CatalogError, ImageSourceError: catalog or images cannot be read.
      BuildError: the folder holds data of other inputs, or a domain would have no item.
    """
    start = time.monotonic()
    with _runner(processes, beam_options) as run:  # one for all four: a pool takes seconds to start
        builders = {
            name: Builder(
                config=name, data_dir=data_dir, inputs=inputs, runner=lambda: contextlib.nullcontext(run), report=report
            )
            for name in (*DOMAINS, "product")
        }
        inputs.check()
        # All are asked before one is built: nothing is added to the data of other inputs.
        built = [builder.is_built_from(inputs) for builder in builders.values()]
        summary_path = data_dir / Builder.name / SUMMARY_FILE
        if all(built) and summary_path.exists():
            report(f"{summary_path.parent} is already built from {inputs.catalog}: nothing to do")
            return json.loads(summary_path.read_text(encoding="utf-8"))
        for builder in builders.values():
            builder.download_and_prepare()
    summary = {
        "fingerprint": inputs.fingerprint,
        "seconds": round(time.monotonic() - start, 1),
        "splits": {
            split: {name: builder.info.metadata[split] for name, builder in builders.items()} for split in inputs.splits
        },
    }
    records.write_text(summary_path, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
    report(f"built {summary_path.parent}; summary in {summary_path}")
    return summary


def _runner(processes: int | None, beam_options: Sequence[str] | None):
    if beam_options is None:
        return local_runner(processes)
    try:
        from data_prep.records.beam_runner import beam_runner
    except ModuleNotFoundError as error:
        raise BuildError("--beam_pipeline_options needs Apache Beam: pip install -r requirements-beam.txt") from error
    return contextlib.nullcontext(beam_runner(beam_options))


def format_summary(summary: dict[str, Any]) -> str:
    """Returns the summary as a table, a line for each domain of each split."""
    lines = [f"{'split':<8}{'domain':<9}{'items':>9}{'kept':>9}{'frames':>10}{'kept':>10}{'MB':>9}  dropped"]
    for split, parts in summary["splits"].items():
        for domain in DOMAINS:
            items, frames, size = (parts[domain][key] for key in ("items", "frames", "bytes"))
            dropped = [f"{count} items: {reason}" for reason, count in items["dropped"].items()]
            dropped += [f"{count} frames: {reason}" for reason, count in frames["dropped"].items()]
            lines.append(
                f"{split:<8}{domain:<9}{items['in']:>9}{items['kept']:>9}{frames['in']:>10}{frames['kept']:>10}"
                f"{size / 1e6:>9.1f}  {', '.join(dropped) or 'none'}"
            )
        products = parts["product"]["products"]
        lines.append(f"{split:<8}{'product':<9}{products['in']:>9}{products['kept']:>9}")
    return "\n".join(lines)


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("catalog", None, "Folder with a catalog.")
    flags.DEFINE_string("release", None, "Folder with the text files, whose catalog is made in <data_dir>/catalog.")
    flags.DEFINE_list("images", None, "Folders with images or the shards of a download; by default <release>/images.")
    flags.DEFINE_string("data_dir", None, "Folder for the data sets, written to <data_dir>/rope.")
    flags.DEFINE_list("splits", list(PREFIXES), "Splits to build.")
    for split, prefix in PREFIXES.items():
        flags.DEFINE_string(f"{split}_prefix", prefix, f"What a release's files of split {split} start with.")
    flags.DEFINE_integer("processes", None, "Processes that write; default: one a core.", lower_bound=1)
    flags.DEFINE_list(
        "beam_pipeline_options", None, "Has Apache Beam write the shards, with such options: runner=FlinkRunner,…"
    )
    flags.mark_flags_as_mutual_exclusive(["catalog", "release"], required=True)
    flags.mark_flag_as_required("data_dir")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.ERROR)  # TFDS warns of each data set that is not built yet
    try:
        summary = build(
            _inputs(),
            Path(FLAGS.data_dir),
            processes=FLAGS.processes,
            beam_options=FLAGS.beam_pipeline_options,
            report=_print,
        )
    except (ReleaseError, CatalogError, ImageSourceError, BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a worker was killed, perhaps for want of memory; run this again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run this again to go on", file=sys.stderr)
        return 130
    print(format_summary(summary))
    return 0


def _inputs() -> Inputs:
    images = [Path(folder) for folder in FLAGS.images or ()]
    if FLAGS.catalog:
        return Inputs(Path(FLAGS.catalog), tuple(images), tuple(FLAGS.splits))
    prefixes = {split: FLAGS[f"{split}_prefix"].value for split in PREFIXES}
    return release_inputs(
        Path(FLAGS.release),
        Path(FLAGS.data_dir),
        images=images,
        splits=FLAGS.splits,
        prefixes=prefixes,
        report=_print,
    )


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
