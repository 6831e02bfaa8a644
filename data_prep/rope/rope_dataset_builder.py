"""TFDS builder: one configuration for the items of each domain and one for the products that point at them.

TFDS's own writer keeps a split in memory and needs TensorFlow past 1 GB. This builder overrides
`_download_and_prepare` and writes shards itself, in flat memory, into a folder that outlives a kill.
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from absl import logging

from data_prep.catalog.files import Catalog
from data_prep.common.domains import DOMAINS
from data_prep.images import index as image_index
from data_prep.records import schema as records
from data_prep.records import shards
from data_prep.records.inputs import BuildError, Inputs, release_inputs
from data_prep.records.local_pool import Runner, local_runner
from data_prep.records.product_rows import kept_products, read_kept_rows
from data_prep.records.progress import Progress

PRODUCTS_PER_SHARD = 16384
FILE_FORMAT = "array_record"
FINGERPRINT_FILE = "fingerprint"


class Builder(tfds.core.dataset_builder.FileReaderBuilder):
    """Builds `rope/page`, `rope/video`, `rope/live` and, from the rows of these three, `rope/product`."""

    name = "rope"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (TFDS's convention)
    BUILDER_CONFIGS = [  # noqa: RUF012
        *(tfds.core.BuilderConfig(name=domain, description=f"The {domain} items.") for domain in DOMAINS),
        tfds.core.BuilderConfig(name="product", description="The products and their rows in the domains."),
    ]
    # Nothing is downloaded: no checksums to look for. TFDS's search for them imports importlib_resources,
    # which it does not install.
    url_infos = None
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "ROPE is given out under a licence: ask its authors. The manual directory is the folder with the "
        "eighteen text files training_*.txt and test_*.txt, and the images in its folder `images`."
    )

    def __init__(
        self,
        *,
        inputs: Inputs | None = None,
        runner: Callable[[], contextlib.AbstractContextManager[Runner]] = local_runner,
        report: Callable[[str], None] = logging.info,
        file_format: str | tfds.core.FileFormat = FILE_FORMAT,
        **kwargs,
    ):
        """Makes a builder.

        Args:
          inputs: what to build from; None takes both splits and the images of the release in the manual directory.
          runner: gives what finishes the shards, as `local_runner` does.
          report: takes lines of progress.
          file_format: array_record, which is the default and the only one.
          **kwargs: those of `tfds.core.DatasetBuilder`: data_dir, config, version.
        """
        super().__init__(file_format=file_format, **kwargs)
        self._inputs = inputs
        self._runner = runner
        self._report = report

    def _info(self) -> tfds.core.DatasetInfo:
        is_product = self.builder_config_name == "product"
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pages, videos and live clips of products, for cross-domain product representation.",
            features=records.product_features() if is_product else records.item_features(),
            homepage="https://arxiv.org/abs/2308.05550",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def download_and_prepare(self, *, download_config: tfds.download.DownloadConfig | None = None, **kwargs) -> None:
        """As TFDS's, but data built from other inputs are an error, where TFDS would take them silently."""
        if download_config is not None and download_config.manual_dir:
            self._read_release(Path(download_config.manual_dir))
        replaces = download_config is not None and download_config.download_mode.overwrite_dataset
        if self._inputs is not None and not replaces:
            self.is_built_from(self._inputs)
        super().download_and_prepare(download_config=download_config, **kwargs)
        if self._inputs is not None and self.builder_config_name == "product":  # the last one that needs it
            shutil.rmtree(self._index_folder(self._inputs), ignore_errors=True)

    def is_built_from(self, inputs: Inputs) -> bool:
        """Returns whether the data are built; raises BuildError when they are, but from other inputs."""
        wanted = inputs.fingerprint
        if not self.is_prepared():
            return False
        if changes := _changes(read_fingerprint(Path(self.data_dir)), wanted):
            raise BuildError(
                f"{self.data_dir} was built from other inputs ({changes}): "
                f"remove {self.data_dir_root / self.name} or take another data folder"
            )
        return True

    def _read_release(self, release: Path) -> Inputs:
        if self._inputs is None:
            self._inputs = release_inputs(release, Path(self.data_dir_root), report=self._report)
        return self._inputs

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> None:
        if download_config.max_examples_per_split is not None:
            raise BuildError("max_examples_per_split is not supported: build from a smaller release")
        if self.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise BuildError(f"file format {self.info.file_format.value} not supported: only {FILE_FORMAT}")
        inputs = self._inputs or self._read_release(Path(dl_manager.manual_dir))
        inputs.check()
        incomplete = Path(self.data_dir)  # TFDS's folder, renamed when done; has a new name at every try
        write_split = self._write_products if self.builder_config_name == "product" else self._write_items
        with _unfinished_folder(incomplete, inputs, self._report) as folder:
            splits = [write_split(folder, inputs, split) for split in inputs.splits]
            _sync(folder)
            folder.rename(incomplete)  # onto the empty folder: the shards move all at once
        self.info.set_splits(tfds.core.splits.SplitDict(splits))

    def _write_items(self, folder: Path, inputs: Inputs, split: str) -> tfds.core.SplitInfo:
        domain = self.builder_config_name
        spans = _plan(inputs.opened, split, domain)
        index = self._index_folder(inputs)
        with _locked(index):  # builds of the other domains use it too
            image_index.write_index(index, inputs.opened, inputs.splits, inputs.images)
        places = image_index.places_path(index, split, domain)
        orders = [
            shards.Shard(path, inputs.catalog, split, domain, span, places, inputs.images)
            for path, span in zip(self._shard_paths(folder, split, len(spans)), spans, strict=True)
        ]
        progress = Progress(f"{split} {domain}", spans, self._report)
        with self._runner() as run:
            for report in run(orders):
                progress.add(*report)
        summary = progress.summary()
        if not summary["items"]["kept"]:
            raise BuildError(
                f"split {split!r} has no {domain} item with an image that decodes in "
                f"{', '.join(map(str, inputs.images))}: {summary['items']['dropped']}, {summary['frames']['dropped']}"
            )
        self.info.metadata[split] = summary
        return self._split_info(split, progress.shard_lengths, summary["bytes"])

    def _write_products(self, folder: Path, inputs: Inputs, split: str) -> tfds.core.SplitInfo:
        catalog = inputs.opened
        kept_rows = {domain: read_kept_rows(self._finished(domain, inputs), split) for domain in DOMAINS}
        # Counted first: a shard's name says how many there are.
        count = sum(1 for _ in kept_products(catalog, split, kept_rows))
        lengths = [min(PRODUCTS_PER_SHARD, count - start) for start in range(0, count, PRODUCTS_PER_SHARD)]
        examples = (
            {"product_id": product.product_id, **{f"{domain}_rows": product.rows[domain] for domain in DOMAINS}}
            for product in kept_products(catalog, split, kept_rows)
        )
        num_bytes = 0
        for path, length in zip(self._shard_paths(folder, split, len(lengths)), lengths, strict=True):
            records.write_records(path, itertools.islice(examples, length))
            num_bytes += path.stat().st_size
        total = catalog.count(split, "product")
        self._report(f"{split} product: {count}/{total} products")
        self.info.metadata[split] = {"products": {"in": total, "kept": count}, "bytes": num_bytes}
        return self._split_info(split, lengths, num_bytes)

    def _finished(self, domain: str, inputs: Inputs) -> Path:
        """Returns the folder of the finished items of `domain`."""
        folder = Path(self.data_dir_root) / self.name / domain / str(self.version)
        if not folder.is_dir() or read_fingerprint(folder) != inputs.fingerprint:
            raise BuildError(f"{self.name}/product needs the rows of {self.name}/{domain}: build that one first")
        return folder

    def _index_folder(self, inputs: Inputs) -> Path:
        return Path(self.data_dir_root) / self.name / f"index-{inputs.digest}"

    def _shard_paths(self, folder: Path, split: str, count: int) -> list[Path]:
        template = self._get_filename_template(split)
        paths = (template.sharded_filepath(shard_index=i, num_shards=count) for i in range(count))
        return [folder / path.name for path in paths]

    def _split_info(self, split: str, shard_lengths: list[int], num_bytes: int) -> tfds.core.SplitInfo:
        template = self._get_filename_template(split)
        return tfds.core.SplitInfo(
            name=split, shard_lengths=shard_lengths, num_bytes=num_bytes, filename_template=template
        )


def read_fingerprint(folder: Path) -> dict[str, str]:
    """Returns the fingerprint of the inputs that a folder, finished or not, was built from; {} if none."""
    path = folder / FINGERPRINT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _changes(built: dict[str, str], wanted: dict[str, str]) -> str:
    """Names what differs between two fingerprints; "" is nothing."""
    names = {"catalog": "text files", "images": "names or sizes of images", "version": "another version of this code"}
    changed = [key for key in wanted if built.get(key) != wanted[key]]
    return ", ".join(names.get(key, f"{key} {built.get(key)!r} then and {wanted[key]!r} now") for key in changed)


def _plan(catalog: Catalog, split: str, domain: str) -> list[shards.Span]:
    """Cuts a domain's items into the spans of its shards."""
    frames = sum(_frame_counts(catalog, split, domain))
    return shards.plan_shards(_frame_counts(catalog, split, domain), max_frames=shards.frames_per_shard(frames))


def _frame_counts(catalog: Catalog, split: str, domain: str) -> Iterator[int]:
    with pq.ParquetFile(catalog.path(split, domain)) as file:
        for batch in file.iter_batches(columns=["frame_times"]):  # as many as names, and read faster
            yield from batch.column(0).value_lengths().to_pylist()


@contextlib.contextmanager
def _unfinished_folder(incomplete: Path, inputs: Inputs, report: Callable[[str], None]) -> Iterator[Path]:
    """Gives the folder in which shards wait for the last one, whatever becomes of this process.

    Shards of other inputs lie in a folder of another name: they are never taken for these.
    """
    config_folder = incomplete.parent
    folder = config_folder / f"unfinished-{inputs.digest}"
    with _locked(config_folder, wait=False):
        _take_back(config_folder, folder, incomplete, inputs.fingerprint)
        for other in sorted(set(config_folder.glob("unfinished-*")) - {folder}):
            report(f"{other} has shards of other inputs; they are not used, the folder may be removed")
        folder.mkdir(exist_ok=True)
        for left in folder.rglob("*.tmp"):
            left.unlink()
        records.write_text(folder / FINGERPRINT_FILE, json.dumps(inputs.fingerprint))
        yield folder


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Keeps other builds out of a folder, which it makes; the lock goes with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BuildError(f"another build writes to {folder}: wait for it or stop it") from error
    finally:
        os.close(lock)


def _take_back(config_folder: Path, folder: Path, incomplete: Path, fingerprint: dict[str, str]) -> None:
    """Undoes what a kill left: the shards in TFDS's incomplete folder, or that folder empty."""
    for left in set(config_folder.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*")) - {incomplete}:
        if read_fingerprint(left) == fingerprint and not folder.exists():
            left.rename(folder)
        elif not any(left.iterdir()):
            left.rmdir()


def _sync(folder: Path) -> None:
    """Waits until the files of a folder are on disk: what is finished also survives a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
