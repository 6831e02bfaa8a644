"""TFDS builder with one configuration for the items of each domain and one for the products that refer to them.

TFDS's own writer keeps a split in memory and needs TensorFlow beyond 1 GB. This builder overrides
`_download_and_prepare` and writes shards itself, in constant memory, to a folder that survives when a build is killed.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tensorflow_datasets.core.constants import DATASET_INFO_FILENAME, INCOMPLETE_PREFIX
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.splits import SplitDict

from data_prep.common.domains import DOMAINS, read_domains, write_domains
from data_prep.common.files import atomic_write, lock_file, read_json
from data_prep.common.progress import Progress
from data_prep.images import index as image_index
from data_prep.records import schema, shards
from data_prep.records.dropped import DROPPED_FILE, MAX_MISSING, check_dropped, check_missing
from data_prep.records.inputs import Inputs, inputs_from_release
from data_prep.records.runners import Runner, local_runner
from data_prep.videos.clip_names import parse_clip

NAME = "rope"  # of data sets without a name of their own
PRODUCTS_PER_SHARD = 16384
FILE_FORMAT = "array_record"
FINGERPRINT_FILE = "fingerprint"


class _Folder(type(epath.Path())):
    """A path whose name is not part of the pattern in `glob`, as it is for TFDS's paths."""

    def glob(self, pattern: str) -> Iterator["_Folder"]:
        """Yields the files of this folder that match the pattern."""
        return map(_Folder, Path(self).glob(pattern))


class _Info(tfds.core.DatasetInfo):
    """TFDS's description of a data set, without its search on the web, which makes a temporary folder each time."""

    def initialize_from_bucket(self) -> None:
        """Does nothing."""


class Builder(FileReaderBuilder):
    """Builds one configuration per domain, such as `rope/page`, and, from the rows of all of them, `rope/product`."""

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (TFDS's convention)
    BUILDER_CONFIGS = [  # noqa: RUF012
        *(tfds.core.BuilderConfig(name=domain, description=f"The {domain} items.") for domain in DOMAINS),
        tfds.core.BuilderConfig(name="product", description="The products and their rows in the domains."),
    ]
    # Nothing is downloaded, so there are no checksums. TFDS's search for them needs importlib_resources, which it does
    # not install.
    url_infos = None
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "ROPE is available from its authors under a license. The manual directory is the folder with the eighteen text "
        "files training_*.txt and test_*.txt, and with the images in its folder `images`."
    )

    def __init__(
        self,
        *,
        config: str | tfds.core.BuilderConfig | None = None,
        dataset_name: str = NAME,
        inputs: Inputs | None = None,
        runner: Runner | None = None,
        max_missing: float = MAX_MISSING,
        report: Callable[[str], None] = logging.info,
        file_format: str | tfds.core.FileFormat = FILE_FORMAT,
        **kwargs: Any,
    ) -> None:
        """Makes a builder. Other arguments are those of `tfds.core.DatasetBuilder`: data_dir, version.

        Args:
            config: Domain, or "product". Default: the first domain of ROPE.
            dataset_name: Name of the data set.
            inputs: Inputs of the build. Default: both splits of the release in TFDS's manual directory.
            runner: Writes the shards. Default: a pool with one process per core.
            max_missing: Largest fraction of the images of a split's domain that may be missing or invalid.
            report: Called with lines of progress.
            file_format: Must be "array_record".
        """
        if not re.fullmatch("[a-z][a-z0-9_]*", dataset_name):
            raise ValueError(
                f"--name is {dataset_name!r}; a data set's name has lower-case letters, digits and _, as in my_shop"
            )
        self.name = dataset_name  # pyright: ignore[reportAttributeAccessIssue]  (TFDS wants a class per name)
        if (given := kwargs.get("data_dir")) and Path(url := os.fspath(epath.Path(given))) != Path(given):
            raise ValueError(f"TFDS reads the data folder {given} as {url}; use a link to it")
        folder = Path(given or "") / self.name / str(getattr(config, "name", config)) / str(self.VERSION)
        if (folder / DATASET_INFO_FILENAME).exists():
            schema.read_splits(folder)  # reports an invalid file better than TFDS
        self._inputs = inputs
        self._runner = runner
        self._max_missing = max_missing
        self._report = report
        if isinstance(config, str) and config not in self.builder_configs and (inputs or folder.exists()):
            config = tfds.core.BuilderConfig(name=config, description=f"The {config} items.")
        super().__init__(file_format=file_format, config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        if self.builder_config_name == "product":
            features = schema.product_features(self._domains())
        else:
            features = schema.item_features(payload=self._has_payload())
        # The features have no files. TFDS would look for them with the folder's name as a pattern.
        features.load_metadata = lambda *_, **__: None
        return _Info(
            builder=self,
            description="Items of products in several domains, for cross-domain product representation.",
            features=features,
            homepage="https://arxiv.org/abs/2308.05550",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    @property
    def data_path(self) -> epath.Path:
        """The folder of the data set, which TFDS searches with patterns."""
        return _Folder(self.data_dir)

    @property
    def counts(self) -> dict[str, Any]:
        """Counts of items, frames and bytes, or of products, by split; stored with the data set."""
        assert self.info.metadata is not None
        return self.info.metadata

    def download_and_prepare(  # pyright: ignore[reportIncompatibleVariableOverride]  (TFDS decorates its method)
        self, *, download_config: tfds.download.DownloadConfig | None = None, **kwargs: Any
    ) -> None:
        """Like TFDS's, but raises ValueError for data built from other inputs, which TFDS would silently keep."""
        if download_config is not None and download_config.manual_dir:
            self._read_release(Path(download_config.manual_dir))
        replaces = download_config is not None and download_config.download_mode.overwrite_dataset
        if self._inputs is not None and not replaces:
            self.is_built_from(self._inputs)
        super().download_and_prepare(download_config=download_config, **kwargs)
        if self._inputs is not None and self.builder_config_name == "product":  # the last configuration that needs it
            shutil.rmtree(self._index_folder(self._inputs), ignore_errors=True)

    def _log_download_bytes(self) -> None:
        """Reports the folder. TFDS's own message says that it downloads the data set."""
        self._report(f"writing {self.data_dir}")

    def _log_download_done(self) -> None:
        """Reports nothing, for the same reason."""

    def _domains(self) -> dict[str, str]:
        """Domains and their kinds, of the inputs if there are any, or of the data set."""
        return self._inputs.opened_catalog.domains if self._inputs else read_domains(self._dataset_folder)

    def _has_payload(self) -> bool:
        """Whether items have a payload, in the inputs if there are any, or in the data set."""
        if self._inputs:
            return self._inputs.opened_catalog.has_payload
        path = Path(self.data_dir) / "features.json"
        return path.exists() and '"payload"' in path.read_text(encoding="utf-8")

    @property
    def _dataset_folder(self) -> Path:
        return Path(self.data_dir_root) / self.name

    def is_built_from(self, inputs: Inputs) -> bool:
        """Returns whether the data are built; raises ValueError if they were built from other inputs."""
        wanted = inputs.fingerprint  # raises ValueError for invalid images before anything is written
        if not self.is_prepared():
            return False
        built = read_fingerprint(Path(self.data_dir))
        names = {"catalog": "text files", "images": "names or sizes of images", "version": "the version of this code"}
        changed = [key for key in {**wanted, **built} if built.get(key) != wanted.get(key)]
        if changes := [names.get(key, f"{key} {built.get(key)!r} then, {wanted.get(key)!r} now") for key in changed]:
            raise ValueError(
                f"{self.data_dir} was built from other inputs ({', '.join(changes)}): "
                f"remove {self._dataset_folder} or choose another data folder"
            )
        return True

    def _read_release(self, release: Path) -> Inputs:
        if self._inputs is None:
            self._inputs = inputs_from_release(release, Path(self.data_dir_root), report=self._report)
        return self._inputs

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig | None = None
    ) -> None:
        if download_config is not None and download_config.max_examples_per_split is not None:
            raise ValueError("max_examples_per_split is not supported; build from a smaller release")
        file_format = self.info.file_format
        if file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(f"file format {file_format and file_format.value} is not supported; use {FILE_FORMAT}")
        inputs = self._inputs or self._read_release(Path(dl_manager.manual_dir))
        inputs.check()
        write_domains(self._dataset_folder, inputs.opened_catalog.domains)
        incomplete = Path(self.data_dir)  # TFDS's folder, with a new name at every attempt; renamed at the end
        write_split = self._write_products if self.builder_config_name == "product" else self._write_items
        with _unfinished_folder(incomplete, inputs, self._report) as folder:
            splits = [write_split(folder, inputs, split) for split in inputs.splits]
            _sync(folder)
            folder.rename(incomplete)  # replaces the empty folder: all shards move at once
        self.info.set_splits(SplitDict(splits))

    def _write_items(self, folder: Path, inputs: Inputs, split: str) -> tfds.core.SplitInfo:
        domain = self.builder_config_name
        assert domain is not None
        spans = _plan(inputs, split, domain)
        index = self._index_folder(inputs)
        index.mkdir(parents=True, exist_ok=True)
        with lock_file(index / "lock", f"is writing {index}", wait=True):  # builds of other domains use it, too
            image_index.write_index(index, inputs.opened_catalog, inputs.splits, inputs.images)
        dropped_path = self._dataset_folder / DROPPED_FILE
        check_missing(index, inputs, self._max_missing, dropped_path)
        places = image_index.places_path(index, split, domain)
        jobs = [
            shards.Shard(path, inputs, split, domain, span, places)
            for path, span in zip(self._shard_paths(folder, split, len(spans)), spans, strict=True)
        ]
        reports: dict[int, shards.ShardReport] = {}
        resumed = 0
        runner = contextlib.nullcontext(self._runner) if self._runner else local_runner()
        with Progress(total=spans[-1].stop, desc=f"{split} {domain}", unit="items") as progress, runner as run:
            for number, report, was_finished in run(jobs):
                reports[number] = report
                items = report.span.stop - report.span.start
                resumed += items if was_finished else 0
                (progress.skip if was_finished else progress.update)(items)
        if resumed:
            self._report(f"{split} {domain}: {resumed} of {spans[-1].stop} items were written by an earlier run")
        ordered = [reports[number] for number in range(len(jobs))]
        summary = shards.summarize(ordered)
        if spans[-1].stop and not summary["items"]["kept"]:
            raise ValueError(
                f"split {split!r} has no {domain} item with an image that decodes in "
                f"{', '.join(map(str, inputs.images))}: {summary['items']['dropped']}, {summary['frames']['dropped']}"
            )
        check_dropped(f"{split} {domain}", summary["frames"], self._max_missing, dropped_path, folder)
        self.counts[split] = summary
        shard_lengths = [report.rows for report in ordered]
        return tfds.core.SplitInfo(split, shard_lengths, summary["bytes"], self._get_filename_template(split))

    def _write_products(self, folder: Path, inputs: Inputs, split: str) -> tfds.core.SplitInfo:
        catalog = inputs.opened_catalog
        domains = catalog.domains
        dropped = {domain: shards.read_dropped_rows(self._finished(domain, inputs), split) for domain in domains}

        def kept_products() -> Iterator[dict[str, Any]]:
            for product in catalog.products(split):
                rows = {f"{domain}_rows": shards.kept_rows(product.rows[domain], dropped[domain]) for domain in domains}
                if any(rows.values()):
                    yield {"product_id": product.product_id, **rows}

        count = sum(1 for _ in kept_products())  # counted first, because the names of shards contain their number
        lengths = [min(PRODUCTS_PER_SHARD, count - start) for start in range(0, count, PRODUCTS_PER_SHARD)]
        examples = kept_products()
        num_bytes = 0
        for path, length in zip(self._shard_paths(folder, split, len(lengths)), lengths, strict=True):
            schema.write_records(path, itertools.islice(examples, length))
            num_bytes += path.stat().st_size
        self.counts[split] = {"products": {"in": catalog.count(split, "product"), "kept": count}, "bytes": num_bytes}
        return tfds.core.SplitInfo(split, lengths, num_bytes, self._get_filename_template(split))

    def _finished(self, domain: str, inputs: Inputs) -> Path:
        """Returns the folder of the finished items of a domain."""
        folder = self._dataset_folder / domain / str(self.version)
        if not folder.is_dir() or read_fingerprint(folder) != inputs.fingerprint:
            raise ValueError(f"{self.name}/product needs the rows of {self.name}/{domain}; build that one first")
        return folder

    def _index_folder(self, inputs: Inputs) -> Path:
        return self._dataset_folder / f"index-{inputs.digest}"

    def _shard_paths(self, folder: Path, split: str, count: int) -> list[Path]:
        template = self._get_filename_template(split)
        return [folder / template.sharded_filepath(shard_index=i, num_shards=count).name for i in range(count)]


def read_fingerprint(folder: Path) -> dict[str, str]:
    """Returns the fingerprint of the inputs that a folder, finished or not, was built from; {} if it has none."""
    path = folder / FINGERPRINT_FILE
    return read_json(path, remedy=f"remove {folder} and build it again") if path.exists() else {}


def _plan(inputs: Inputs, split: str, domain: str) -> list[shards.Span]:
    """Returns the spans of a domain's shards; if it begins with clips, each listed frame counts as many."""
    catalog = inputs.opened_catalog
    first = itertools.islice(catalog.items(split, domain), 100)
    has_clips = any(parse_clip(frame.name) for item in first for frame in item.frames)
    factor = inputs.choice.frames_per_clip if has_clips else 1
    frames = factor * sum(catalog.frame_counts(split, domain))
    max_frames = max(1, shards.frames_per_shard(frames) // factor)
    spans = shards.plan_shards(catalog.frame_counts(split, domain), max_frames=max_frames)
    return spans or [shards.Span(0, 0, 0, 0)]  # a file without records, if the split lacks the domain


@contextlib.contextmanager
def _unfinished_folder(incomplete: Path, inputs: Inputs, report: Callable[[str], None]) -> Iterator[Path]:
    """Yields the folder that keeps shards until all are written, even if this process is killed.

    Its name contains the digest of the inputs, so that shards of other inputs are never taken for these.
    """
    config_folder = incomplete.parent
    folder = config_folder / f"unfinished-{inputs.digest}"
    config_folder.mkdir(parents=True, exist_ok=True)
    with lock_file(config_folder / ".lock", f"is building {config_folder}", remove=True):
        _recover(config_folder, folder, incomplete, inputs.fingerprint)
        for other in sorted(set(config_folder.glob("unfinished-*")) - {folder}):
            report(f"{other} contains shards of other inputs, which are not used; you may remove it")
        folder.mkdir(exist_ok=True)
        for leftover in folder.rglob("*.tmp"):
            leftover.unlink()
        with atomic_write(folder / FINGERPRINT_FILE, "w") as file:
            json.dump(inputs.fingerprint, file)
        yield folder


def _recover(config_folder: Path, folder: Path, incomplete: Path, fingerprint: dict[str, str]) -> None:
    """Moves shards back if a build was killed after they were moved to TFDS's folder; removes its empty folders."""
    for leftover in set(config_folder.glob(f"{INCOMPLETE_PREFIX}*")) - {incomplete}:
        if read_fingerprint(leftover) == fingerprint and not folder.exists():
            leftover.rename(folder)
        elif not any(leftover.iterdir()):
            leftover.rmdir()


def _sync(folder: Path) -> None:
    """Waits until all files of a folder are on disk, so that finished data survive a power failure."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
