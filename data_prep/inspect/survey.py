"""Distributions of what is in the records: read file by file, kept as counts of values."""

import collections
import dataclasses
import io
from collections.abc import Iterable
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from data_prep.common.domains import DOMAINS
from data_prep.images import decoding as images

Histogram = collections.Counter[int]  # value → how often
FORMATS = ("JPEG", *images.FORMATS)


@dataclasses.dataclass(frozen=True)
class Part:
    """Every `step`-th record of a file."""

    path: Path
    step: int = 1


@dataclasses.dataclass(frozen=True)
class Distribution:
    """How a histogram is spread; all 0 where it is empty."""

    low: int = 0
    median: int = 0
    mean: float = 0.0
    high: int = 0
    most: int = 0


def survey_items(part: Part) -> dict[str, Histogram]:
    """Counts frames an item, characters a text (0: none), products an item; width, height and kB of images."""
    counts = {name: Histogram() for name in ("frames", "characters", "products", "width", "height", "kB")}
    for item in _read(part):
        frames = item["frames"].bytes_list.value
        counts["frames"][len(frames)] += 1
        counts["characters"][len(item["text"].bytes_list.value[0].decode())] += 1
        counts["products"][len(item["product_ids"].int64_list.value)] += 1
        for data in frames:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # the header only
                counts["width"][image.width] += 1
                counts["height"][image.height] += 1
            counts["kB"][round(len(data) / 1000)] += 1
    return counts


def survey_products(part: Part) -> dict[str, Histogram]:
    """Counts, of each domain, items a product."""
    counts = {domain: Histogram() for domain in DOMAINS}
    for product in _read(part):
        for domain in DOMAINS:
            counts[domain][len(product[f"{domain}_rows"].int64_list.value)] += 1
    return counts


def add_up(counts: Iterable[dict[str, Histogram]]) -> dict[str, Histogram]:
    """Returns the sum of several files' histograms."""
    total: dict[str, Histogram] = collections.defaultdict(Histogram)
    for part in counts:
        for name, histogram in part.items():
            total[name].update(histogram)
    return dict(total)


def describe(histogram: Histogram) -> Distribution:
    """Returns 5th, 50th and 95th percentile, mean and maximum; a percentile is a value that occurs.

    Of the values 1, 2, 2, 9 the median is 2, the 95th percentile and the maximum are 9.
    """
    total = histogram.total()
    if not total:
        return Distribution()
    values = sorted(histogram)
    mean = sum(value * count for value, count in histogram.items()) / total

    def percentile(share: float) -> int:
        seen = 0
        for value in values:
            seen += histogram[value]
            if seen >= share * total:
                return value
        return values[-1]

    return Distribution(percentile(0.05), percentile(0.5), mean, percentile(0.95), values[-1])


def _read(part: Part):
    reader = ArrayRecordReader(str(part.path))
    for number in range(0, reader.num_records(), part.step):
        yield tf_example_pb2.Example.FromString(reader.read([number])[0]).features.feature
    reader.close()
