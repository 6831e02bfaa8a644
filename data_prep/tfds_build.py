"""Runs `tfds build` without TensorFlow.

The `tfds` program needs TensorFlow only for another of its commands (convert_format). This module runs its build
command alone, with all flags:

    python -m data_prep.tfds_build data_prep/rope --data_dir=DIR --manual_dir=RELEASE [--config=page]
"""

import sys
from pathlib import Path

from absl import app
from tensorflow_datasets.scripts.cli import build, cli_utils

CHECKOUT = Path(__file__).parents[1]


def main(args: build.Args) -> None:
    names = args.positional_datasets
    names[:] = [
        str(CHECKOUT / name) if not Path(name).exists() and (CHECKOUT / name).is_dir() else name for name in names
    ]
    try:
        args.execute()
    except (ValueError, OSError, AssertionError) as error:  # AssertionError: TFDS has no manual directory
        sys.exit(f"tfds build: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=cli_utils.make_flags_parser(build.Args, description="Builds TFDS data sets."))
