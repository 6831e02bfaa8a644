"""TFDS builder: one configuration for the items of each domain and one for the products that point at them.

TFDS's own writer keeps a split in memory and needs TensorFlow past 1 GB. This builder overrides
`_download_and_prepare` and writes shards itself, in flat memory, into a folder that outlives a kill.
"""

import collections
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from data_prep import records, shards
from data_prep.inputs import BuildError, Inputs
from data_prep.progress import Progress, summarize
from data_prep.release import DOMAINS, Release

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
        process_pool: Callable[[], contextlib.AbstractContextManager[Executor | None]] = shards.process_pool,
        report: Callable[[str], None] = logging.info,
        file_format: str | tfds.core.FileFormat = FILE_FORMAT,
        **kwargs,
    ):
        """Makes a builder.

        Args:
          inputs: what to build from; None takes both splits and the images from the manual directory.
          process_pool: gives the pool that writes the shards, as `shards.process_pool` does.
          report: takes lines of progress.
          file_format: array_record, which is the default and the only one.
          **kwargs: those of `tfds.core.DatasetBuilder`: data_dir, config, version.
        """
        super().__init__(file_format=file_format, **kwargs)
        self._inputs = inputs
        self._process_pool = process_pool
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
        inputs = self._inputs
        if inputs is None and download_config is not None and download_config.manual_dir:
            inputs = Inputs(Path(download_config.manual_dir))
        replaces = download_config is not None and download_config.download_mode.overwrite_dataset
        if inputs is not None and not replaces:
            self.is_built_from(inputs)
        super().download_and_prepare(download_config=download_config, **kwargs)

    def is_built_from(self, inputs: Inputs) -> bool:
        """Returns whether the data are built; raises BuildError when they are, but from other inputs."""
        wanted = inputs.fingerprint
        if not self.is_prepared():
            return False
        if read_fingerprint(Path(self.data_dir)) != wanted:
            raise BuildError(
                f"{self.data_dir} was built from other inputs than {inputs.release} has now "
                f"(text files, images or splits): remove {self.data_dir_root / self.name} "
                "or take another data folder"
            )
        return True

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> None:
        inputs = self._inputs or Inputs(Path(dl_manager.manual_dir))
        if download_config.max_examples_per_split is not None:
            raise BuildError("max_examples_per_split is not supported: build from a smaller release")
        if self.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise BuildError(f"file format {self.info.file_format.value} not supported: only {FILE_FORMAT}")
        incomplete = Path(self.data_dir)  # TFDS's folder, renamed when done; has a new name at every try
        write_split = self._write_products if self.builder_config_name == "product" else self._write_items
        with _unfinished_folder(incomplete, inputs.fingerprint, self._report) as folder:
            splits = [write_split(folder, inputs, split) for split in inputs.splits]
            folder.rename(incomplete)  # onto the empty folder: the shards move all at once
        self.info.set_splits(tfds.core.splits.SplitDict(splits))

    def _write_items(self, folder: Path, inputs: Inputs, split: str) -> tfds.core.SplitInfo:
        domain = self.builder_config_name
        release = inputs.read(split)
        items = release.items[domain]
        if not items:
            raise BuildError(f"split {split!r} of {inputs.release} has no {domain} items")
        ranges = shards.plan_shards(items)
        paths = self._shard_paths(folder, split, len(ranges))
        orders = [
            shards.Shard(path, items[r.start : r.stop], inputs.images_folder)
            for path, r in zip(paths, ranges, strict=True)
        ]
        progress = Progress(f"{split} {domain}", items, self._report)
        with self._process_pool() as pool:
            reports = shards.write_shards(orders, pool=pool, on_report=progress.add)
        summary = summarize(items, reports)
        if not summary["items"]["kept"]:
            raise BuildError(
                f"split {split!r} has no {domain} item with an image that decodes in {inputs.images_folder}: "
                f"{summary['items']['dropped']}, {summary['frames']['dropped']}"
            )
        self.info.metadata[split] = summary | {"unreferenced": dict(release.unreferenced)}
        return self._split_info(split, [len(r.item_ids) for r in reports], summary["bytes"])

    def _write_products(self, folder: Path, inputs: Inputs, split: str) -> tfds.core.SplitInfo:
        release = inputs.read(split)
        rows = {domain: _product_rows(self._finished(domain, inputs), release, domain) for domain in DOMAINS}
        products = [p for p in release.products if any(p in rows[domain] for domain in DOMAINS)]
        chunks = [products[i : i + PRODUCTS_PER_SHARD] for i in range(0, len(products), PRODUCTS_PER_SHARD)]
        num_bytes = 0
        for path, chunk in zip(self._shard_paths(folder, split, len(chunks)), chunks, strict=True):
            examples = (
                {"product_id": p, **{f"{domain}_rows": rows[domain].get(p, ()) for domain in DOMAINS}} for p in chunk
            )
            num_bytes += records.write_records(path, records.product_features(), examples)
        self._report(f"{split} product: {len(products)}/{len(release.products)} products")
        self.info.metadata[split] = {
            "products": {"in": len(release.products), "kept": len(products)},
            "bytes": num_bytes,
        }
        return self._split_info(split, [len(chunk) for chunk in chunks], num_bytes)

    def _finished(self, domain: str, inputs: Inputs) -> Path:
        """Returns the folder of the finished items of `domain`."""
        folder = Path(self.data_dir_root) / self.name / domain / str(self.version)
        if not folder.is_dir() or read_fingerprint(folder) != inputs.fingerprint:
            raise BuildError(f"{self.name}/product needs the rows of {self.name}/{domain}: build that one first")
        return folder

    def _shard_paths(self, folder: Path, split: str, count: int) -> list[Path]:
        template = self._get_filename_template(split)
        paths = (template.sharded_filepath(shard_index=i, num_shards=count) for i in range(count))
        return [folder / path.name for path in paths]

    def _split_info(self, split: str, shard_lengths: list[int], num_bytes: int) -> tfds.core.SplitInfo:
        template = self._get_filename_template(split)
        return tfds.core.SplitInfo(
            name=split, shard_lengths=shard_lengths, num_bytes=num_bytes, filename_template=template
        )


def read_fingerprint(folder: Path) -> str:
    """Returns the fingerprint of the inputs that a folder, finished or not, was built from; "" if none."""
    path = folder / FINGERPRINT_FILE
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _product_rows(folder: Path, release: Release, domain: str) -> dict[int, list[int]]:
    """Returns product → its rows, ascending, in the finished records of a domain."""
    products = {item.item_id: item.product_ids for item in release.items[domain]}
    rows: dict[int, list[int]] = collections.defaultdict(list)
    for row, item_id in enumerate(shards.read_item_ids(folder, release.split)):
        for product in products[item_id]:
            rows[product].append(row)
    return rows


@contextlib.contextmanager
def _unfinished_folder(incomplete: Path, fingerprint: str, report: Callable[[str], None]) -> Iterator[Path]:
    """Gives the folder in which shards wait for the last one, whatever becomes of this process.

    Shards of other inputs lie in a folder of another name: they are never taken for these.
    """
    config_folder = incomplete.parent
    folder = config_folder / f"unfinished-{fingerprint[:16]}"
    lock = os.open(config_folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however that ends
        except BlockingIOError as error:
            raise BuildError(f"another build writes to {config_folder}: wait for it or stop it") from error
        _take_back(config_folder, folder, incomplete, fingerprint)
        for other in sorted(set(config_folder.glob("unfinished-*")) - {folder}):
            report(f"{other} has shards of other inputs; they are not used, the folder may be removed")
        folder.mkdir(exist_ok=True)
        for left in folder.rglob("*.tmp"):
            left.unlink()
        records.write_text(folder / FINGERPRINT_FILE, fingerprint)
        yield folder
    finally:
        os.close(lock)


def _take_back(config_folder: Path, folder: Path, incomplete: Path, fingerprint: str) -> None:
    """Undoes what a kill left: the shards in TFDS's incomplete folder, or that folder empty."""
    for left in set(config_folder.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*")) - {incomplete}:
        if read_fingerprint(left) == fingerprint and not folder.exists():
            left.rename(folder)
        elif not any(left.iterdir()):
            left.rmdir()
