"""`tfds build`, as TFDS has it, for machines without TensorFlow.

The `tfds` program cannot start without TensorFlow, because of another of its commands (convert_format). Its
build command needs none; this module runs just that one, with all of its flags:

    python -m data_prep.tfds_build data_prep/rope --data_dir=DIR --manual_dir=RELEASE [--config=page]
"""

import sys

from absl import app
from tensorflow_datasets.scripts.cli import build, cli_utils

from data_prep.catalog.files import CatalogError
from data_prep.catalog.release import ReleaseError
from data_prep.images.sources import ImageSourceError
from data_prep.records.inputs import BuildError


def main(args: build.Args) -> int:
    try:
        args.execute()
    except (BuildError, CatalogError, ImageSourceError, ReleaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=cli_utils.make_flags_parser(build.Args, description="Builds TFDS data sets."))
