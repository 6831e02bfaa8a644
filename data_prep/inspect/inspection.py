"""What there is to show of a built data set."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from data_prep.common.domains import DOMAINS
from data_prep.common.process_pool import ProcessMap, process_map
from data_prep.inspect import page as inspect_page
from data_prep.inspect.overlaps import MEMORY_LIMIT, Overlap, RecordFile, find_overlap, take_down
from data_prep.inspect.page import ShownItem, ShownProduct, Side, Split
from data_prep.inspect.survey import Histogram, Part, add_up, describe, survey_items, survey_products
from data_prep.rope.rope_dataset_builder import Builder

HEADER = ("domain", "what", "5%", "median", "mean", "95%", "most")
ITEMS_SHOWN, FRAMES_SHOWN = 2, 8


class InspectError(ValueError):
    """A data set that cannot be inspected; the message says what to change."""


def inspect(data_dir: Path, *, items: int, products: int, processes: int | None = None) -> list[Split]:
    """Returns what there is to show of each split; arguments as the flags of the command."""
    configs = _open(data_dir)
    with process_map(processes) as apply:
        return [_inspect_split(configs, split, items, products, apply) for split in configs["page"].info.splits]


def check_split(data_dir: Path, *, processes: int | None = None) -> Overlap:
    """Returns what the splits share; takes about 60 bytes an image of disk in the data folder while it runs."""
    import duckdb  # here, so that the processes that only read records are spared it

    configs = _open(data_dir)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix="check_split-") as name, process_map(processes) as apply:
        folder = Path(name)
        files = [
            RecordFile(path, split, config, folder / f"{config}-{path.name}.parquet")
            for config, builder in configs.items()
            for split in builder.info.splits
            for path in _paths(builder, split)
        ]
        for _ in apply(take_down, files):
            pass
        try:
            return find_overlap([file.target for file in files], folder)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise InspectError(f"{MEMORY_LIMIT} of memory or the disk of {data_dir} do not suffice: {error}") from error


def format_overlap(overlap: Overlap) -> str:
    """Returns the overlap in lines of text."""
    lines = [f"products in more than one split: {overlap.products}"]
    lines += [f"  product {product}" for product in overlap.product_ids]
    lines.append(f"images whose bytes occur in more than one split: {overlap.images}")
    return "\n".join([*lines, *(f"  {example}" for example in overlap.examples)])


def format_table(split: Split) -> str:
    """Returns a split's table as text."""
    lines = []
    for domain, what, *numbers in (split.header, *split.rows):
        lines.append(f"{domain:<10}{what:<12}" + "".join(f"{number:>10}" for number in numbers))
    return "\n".join(lines)


def _open(data_dir: Path) -> dict[str, tfds.core.DatasetBuilder]:
    folders = {name: data_dir / Builder.name / name / str(Builder.VERSION) for name in (*DOMAINS, "product")}
    if missing := [str(folder) for folder in folders.values() if not (folder / "dataset_info.json").exists()]:
        raise InspectError(f"no finished data set in {', '.join(missing)}: build it with ./run.sh build")
    return {name: tfds.builder_from_directory(folder) for name, folder in folders.items()}


def _paths(builder: tfds.core.DatasetBuilder, split: str) -> list[Path]:
    return [Path(path) for path in builder.info.splits[split].filepaths]


def _inspect_split(
    configs: dict[str, tfds.core.DatasetBuilder], split: str, items: int, products: int, apply: ProcessMap
) -> Split:
    histograms: dict[tuple[str, str], Histogram] = {}
    rows = []
    for domain in DOMAINS:
        info = configs[domain].info.splits[split]
        step = max(1, info.num_examples // items) if items else 1
        counts = add_up(
            dict(apply(survey_items, [Part(path, step) for path in _paths(configs[domain], split)])).values()
        )
        read = counts["frames"].total()
        rows.append((domain, "items", *[""] * 4, f"{info.num_examples:,}" + (f" ({read:,} read)" if step > 1 else "")))
        histograms |= {(domain, name): histogram for name, histogram in counts.items()}
    parts = [Part(path) for path in _paths(configs["product"], split)]
    per_product = add_up(dict(apply(survey_products, parts)).values())
    rows.append(("product", "products", *[""] * 4, f"{configs['product'].info.splits[split].num_examples:,}"))
    histograms |= {("product", f"{domain}s"): histogram for domain, histogram in per_product.items()}
    for (domain, name), histogram in histograms.items():
        spread = describe(histogram)
        numbers = (spread.low, spread.median, round(spread.mean, 1), spread.high, spread.most)
        rows.append((domain, name, *(f"{number:,}" for number in numbers)))
    plots = [inspect_page.plot(f"{domain}: {name}", histogram) for (domain, name), histogram in histograms.items()]
    return Split(split, HEADER, rows, plots, list(_show_products(configs, split, products)))


def _show_products(configs: dict[str, tfds.core.DatasetBuilder], split: str, count: int) -> Iterator[ShownProduct]:
    sources = {name: builder.as_data_source(split) for name, builder in configs.items()}
    total = len(sources["product"])
    for number in range(min(count, total)):
        product = sources["product"][number * total // min(count, total)]
        sides = [
            Side(domain, len(rows), [_show_item(sources[domain][int(row)]) for row in rows[:ITEMS_SHOWN]])
            for domain in DOMAINS
            for rows in [product[f"{domain}_rows"]]
        ]
        yield ShownProduct(int(product["product_id"]), sides)


def _show_item(item: dict) -> ShownItem:
    images = [inspect_page.thumbnail(data) for data in item["frames"][:FRAMES_SHOWN]]
    return ShownItem(int(item["item_id"]), item["text"].decode(), images)
