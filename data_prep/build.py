"""Builds the four TFDS data sets of `rope` from a release and its images.

    python -m data_prep.build --release=DIR --data_dir=DIR [--images=DIR] [--splits=train,test]

Killed at any point, the same command goes on where it was; over a finished build it says so and does nothing.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from data_prep import records, shards
from data_prep.inputs import BuildError, Inputs
from data_prep.release import DOMAINS, PREFIXES, ReleaseError
from data_prep.rope.rope_dataset_builder import Builder

FLAGS = flags.FLAGS


def build(
    inputs: Inputs, data_dir: Path, *, processes: int | None = None, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Builds what is not built yet; the summary goes to <data_dir>/rope/build_summary.json and is returned.

    Args:
      inputs: what to build from.
      data_dir: TFDS's data folder.
      processes: size of the pool; None is one for each core.
      report: takes lines of progress.

    Returns:
      split → domain → {items, frames: {in, kept, dropped: reason → count}, bytes, …}, and split → "product".

    Raises:
      ReleaseError: the release cannot be read.
      BuildError: the folder holds data of other inputs, or a domain would have no item.
    """
    with shards.process_pool(processes) as pool:  # one for all four: a pool takes seconds to start
        builders = {
            name: Builder(
                config=name,
                data_dir=data_dir,
                inputs=inputs,
                process_pool=lambda: contextlib.nullcontext(pool),
                report=report,
            )
            for name in (*DOMAINS, "product")
        }
        # All are asked before one is built: nothing is added to the data of other inputs.
        built = [builder.is_built_from(inputs) for builder in builders.values()]
        summary_path = data_dir / Builder.name / "build_summary.json"
        if all(built) and summary_path.exists():
            report(f"{summary_path.parent} is already built from {inputs.release}: nothing to do")
            return json.loads(summary_path.read_text(encoding="utf-8"))
        for split in inputs.splits:
            inputs.read(split)  # a fault in one split shows before the hours that another takes
        for builder in builders.values():
            builder.download_and_prepare()
    summary = {
        split: {name: builder.info.metadata[split] for name, builder in builders.items()} for split in inputs.splits
    }
    records.write_text(summary_path, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
    report(f"built {summary_path.parent}; summary in {summary_path}")
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """Returns the summary as a table, a line for each domain of each split."""
    lines = [f"{'split':<8}{'domain':<9}{'items':>9}{'kept':>9}{'frames':>10}{'kept':>10}{'MB':>9}  dropped"]
    for split, parts in summary.items():
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
        for name, rows in parts["page"]["unreferenced"].items():
            lines.append(f"{split:<8}{name}: {rows} rows of items that belong to no product, ignored")
    return "\n".join(lines)


def define_flags() -> None:
    """Defines the flags of the command; not at import, where those of two commands would collide."""
    flags.DEFINE_string("release", None, "Folder with the text files.")
    flags.DEFINE_string("images", None, "Folder with the images; by default <release>/images.")
    flags.DEFINE_string("data_dir", None, "Folder for the data sets, written to <data_dir>/rope.")
    flags.DEFINE_list("splits", list(PREFIXES), "Splits to build.")
    for split, prefix in PREFIXES.items():
        flags.DEFINE_string(f"{split}_prefix", prefix, f"What the file names of split {split} start with.")
    flags.DEFINE_integer("processes", None, "Processes that write; default: one a core.", lower_bound=1)
    flags.mark_flags_as_required(["release", "data_dir"])


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.ERROR)  # TFDS warns of each data set that is not built yet
    try:
        inputs = Inputs(
            release=Path(FLAGS.release),
            images=Path(FLAGS.images) if FLAGS.images else None,
            splits=tuple(FLAGS.splits),
            prefixes={split: FLAGS[f"{split}_prefix"].value for split in PREFIXES},
        )
        summary = build(
            inputs,
            Path(FLAGS.data_dir),
            processes=FLAGS.processes,
            report=lambda line: print(line, flush=True),
        )
    except (ReleaseError, BuildError, OSError) as error:
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


if __name__ == "__main__":
    define_flags()
    app.run(main)
