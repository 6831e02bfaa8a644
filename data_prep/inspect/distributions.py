"""Distributions of the contents of records, collected file by file as histograms."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_prep.images.decoding import open_image
from data_prep.records.schema import Example, parse_example

Histogram = collections.Counter[int]  # value → number of occurrences


def read_sample(path: Path, step: int = 1) -> Iterator[Example]:
    """Yields every `step`-th record of a file."""
    reader = ArrayRecordReader(str(path))
    for number in range(0, reader.num_records(), step):
        yield parse_example(reader.read([number])[0])
    reader.close()


@dataclasses.dataclass(frozen=True)
class Distribution:
    """5th, 50th and 95th percentile, mean and maximum of a histogram; all 0 if it is empty."""

    low: int = 0
    median: int = 0
    mean: float = 0.0
    high: int = 0
    maximum: int = 0


def item_histograms(path: Path, *, step: int) -> dict[str, Histogram]:
    """Counts frames, characters (0 without text) and products per item, and width, height and kB per image."""
    counts = {name: Histogram() for name in ("frames", "characters", "products", "width", "height", "kB")}
    for item in read_sample(path, step):
        frames = item.byte_strings("frames")
        counts["frames"][len(frames)] += 1
        counts["characters"][len(item.byte_strings("text")[0].decode())] += 1
        counts["products"][len(item.integers("product_ids"))] += 1
        for data in frames:
            with open_image(data) as image:  # reads the header only
                counts["width"][image.width] += 1
                counts["height"][image.height] += 1
            counts["kB"][round(len(data) / 1000)] += 1
    return counts


def product_histograms(path: Path, *, domains: Sequence[str]) -> dict[str, Histogram]:
    """Counts items per product in each domain."""
    counts = {domain: Histogram() for domain in domains}
    for product in read_sample(path):
        for domain in domains:
            counts[domain][len(product.integers(f"{domain}_rows"))] += 1
    return counts


def add_up(counts: Iterable[dict[str, Histogram]]) -> dict[str, Histogram]:
    """Returns the sums of the histograms of several files."""
    total: dict[str, Histogram] = collections.defaultdict(Histogram)
    for part in counts:
        for name, histogram in part.items():
            total[name].update(histogram)
    return dict(total)


def describe(histogram: Histogram) -> Distribution:
    """Summarizes a histogram; percentiles are values that occur.

    Of the values 1, 2, 2, 9, the median is 2, and the 95th percentile and the maximum are 9.
    """
    if not histogram:
        return Distribution()
    values, counts = np.array(list(histogram.items())).T
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95), weights=counts, method="inverted_cdf").tolist()
    return Distribution(low, median, float(np.average(values, weights=counts)), high, values.max().item())
