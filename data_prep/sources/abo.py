"""Converts Amazon Berkeley Objects (ABO) into a catalog with the domains page, spin and photos.

    python -m data_prep.sources.abo FOLDER --out=data/abo_catalog

A page is a main photo with the name, brand and attributes of its listing as text, a spin is a turntable sequence whose
times are azimuths in steps of 5°, and every other catalog image is an item of photos. Listings are the same product if
they share the item id (in several marketplaces), the spin or the main image.

FOLDER is the download, unpacked or still in tar files, which get an index next to them. If it has abo-mvr.csv.xz, the
split of multi-view retrieval, products with an image for testing are test products and all others train. Without it,
products are split by hash.
"""

import csv
import html
import json
import lzma
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from absl import flags

from data_prep.common import cli
from data_prep.common.files import atomic_write
from data_prep.sources.download_files import index_tar, read_csv, read_lines
from data_prep.sources.table_source import convert, join_names

FLAGS = flags.FLAGS
SIZES = ("small", "original")
OLD_LICENSE = "LICENSE-CC-BY-NC-4.0.txt"
SPLIT_FILE = "abo-mvr.csv.xz"
_MAX_ASPECT = 10  # images that are narrower, such as 30 × 500, are left out
_MAX_INVALID = 0.01  # of the listings


class Listing(NamedTuple):
    """A product in a marketplace, "" for missing values. Listings are sorted so that the best text comes first."""

    rank: int  # of the language of its name; 0 is the language asked for
    item: str
    marketplace: str
    main: str  # id of an image
    others: tuple[str, ...]
    spin: str
    text: str
    payload: Mapping[str, str]


def write_table(folder: Path, out: Path, *, size: str = "small", language: str = "en_US") -> Counter[str]:
    """Writes a table of ABO with a JSON line per image; returns the numbers of rows and of faults of each kind.

    Raises:
        FileNotFoundError: A file of the metadata is missing.
        ValueError: More than 1% of the listings are invalid.
    """
    counts = Counter[str]()
    if (folder / OLD_LICENSE).exists():
        print(f"{folder / OLD_LICENSE} is of an earlier release; the data is under CC BY 4.0 today")
    for archive in folder.glob("*.tar"):
        index_tar(archive)
    listings = sorted(_read_listings(folder, language, counts), key=lambda listing: listing[:3])
    images, spins = _read_images(folder, size, counts), _read_spins(folder)
    products = group_products(listings)
    splits = _read_split(folder, listings, products)
    with atomic_write(out, "w") as file:
        for row in _rows(listings, products, images, spins, counts):
            row["split"] = splits.get(row["product"], "train") if splits else ""
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return +counts


def parse_listing(fields: Mapping[str, Any], language: str) -> Listing:
    """Returns a listing with texts in `language`, such as "en_US".

    Texts that it lacks are taken in another variety of the language, in English, or in any language, in this order.
    """

    def best(key: str) -> tuple[int, str]:
        found = [(4, "")]
        for value in fields.get(key) or ():
            tag = str(value.get("language_tag", language))
            fits = (tag == language, tag[:2] == language[:2], tag[:2] == "en", True)
            found.append((fits.index(True), " ".join(html.unescape(str(value["value"])).split())))
        return min(found, key=lambda pair: pair[0])

    rank, title = best("item_name")
    kinds = fields.get("product_type") or [{}]
    attributes = {key: best(key)[1] for key in ("brand", "color", "material", "style")}
    attributes["category"] = str(kinds[0].get("value", "")).replace("_", " ").lower()
    text = title
    for value in attributes.values():
        text += f", {value}" if value.lower() not in text.lower() else ""
    return Listing(
        rank,
        str(fields["item_id"]),
        str(fields.get("domain_name") or ""),
        fields.get("main_image_id") or "",
        tuple(fields.get("other_image_id") or ()),
        fields.get("spin_id") or "",
        text.removeprefix(", "),
        {"title": title, **attributes},
    )


def group_products(listings: Sequence[Listing]) -> list[str]:
    """Returns the product of each listing: the smallest item id of the listings that are the same product."""
    keys = ((("item", own.item), ("spin", own.spin), ("image", own.main)) for own in listings)
    return join_names([own.item for own in listings], ([key for key in own if key[1]] for own in keys))


def _rows(
    listings: Sequence[Listing],
    products: Sequence[str],
    images: Mapping[str, str],
    spins: Mapping[str, list[tuple[int, str]]],
    counts: Counter[str],
) -> Iterator[dict[str, Any]]:
    """Yields the rows of the table, those of a product together, each item once per product."""
    of_product = defaultdict(list)
    for product, listing in zip(products, listings, strict=True):
        of_product[product].append(listing)
    for product, own in of_product.items():
        mains = dict.fromkeys(listing.main for listing in own)
        others = dict.fromkeys(image for listing in own for image in listing.others if image not in mains)
        texts = {listing.main: listing for listing in reversed(own)}
        items = [("page", main, [(0, images.get(main, ""))], texts[main].text) for main in mains if main]
        items += [("photos", image, [(0, images.get(image, ""))], "") for image in others]
        turns = dict.fromkeys(listing.spin for listing in own if listing.spin)
        items += [("spin", spin, spins.get(spin, []), "") for spin in turns]
        for domain, item, frames, text in items:
            frames = [(time, path) for time, path in frames if path]
            counts["items without images"] += not frames
            counts[f"items of {domain}"] += bool(frames)
            for time, path in frames:
                fields = {"product": product, "domain": domain, "item": item, "text": text, "image": path, "time": time}
                yield {**own[0].payload, **fields}


def _read_listings(folder: Path, language: str, counts: Counter[str]) -> Iterator[Listing]:
    seen = set()
    for place, line in read_lines(folder, "listings/metadata/listings_*.json.gz", "abo-listings.tar"):
        counts["listings"] += 1
        try:
            listing = parse_listing(json.loads(line), language)
        except (ValueError, LookupError, TypeError, AttributeError):
            counts["invalid listings"] += 1
            print(f"warning: {place} is not a listing", flush=True)
            continue
        if (key := (listing.item, listing.marketplace)) in seen:
            counts["repeated listings"] += 1
            continue
        seen.add(key)
        counts["listings in other languages"] += listing.rank > 1
        yield listing
    if (invalid := counts["invalid listings"]) > _MAX_INVALID * counts["listings"]:
        raise ValueError(f"{invalid} of {counts['listings']} listings in {folder} are invalid; download them again")


def _read_images(folder: Path, size: str, counts: Counter[str]) -> dict[str, str]:
    """Returns image id → path, without images that are too narrow."""
    images = {}
    for row in read_csv(folder, "images/metadata/images.csv.gz", f"abo-images-{size}.tar"):
        sides = sorted((int(row["height"]), int(row["width"])))
        counts["narrow images"] += (narrow := sides[1] > _MAX_ASPECT * sides[0])
        if not narrow:
            images[row["image_id"]] = f"images/{size}/{row['path']}"
    return images


def _read_spins(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Returns spin id → azimuth and path of its frames, in order."""
    spins = defaultdict(list)
    for row in read_csv(folder, "spins/metadata/spins.csv.gz", "abo-spins.tar"):
        spins[row["spin_id"]].append((int(row["azimuth"]), f"spins/original/{row['path']}"))
    return {spin: sorted(frames) for spin, frames in spins.items()}


def _read_split(folder: Path, listings: Sequence[Listing], products: Sequence[str]) -> dict[str, str]:
    """Returns product → "test" or "val" by the file of multi-view retrieval, empty without the file."""
    paths = [path for path in (folder / SPLIT_FILE, folder / "benchmarks" / SPLIT_FILE) if path.is_file()]
    if not paths:
        return {}
    products_of = defaultdict(set)
    for product, listing in zip(products, listings, strict=True):
        for name in {listing.item, listing.main, listing.spin, *listing.others} - {""}:
            products_of[name].add(product)
    splits = {}
    with lzma.open(paths[0], "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            name, split = PurePosixPath(row["path"]).stem, row["split_set"].partition("-")[0]
            if split in ("test", "val"):
                for key in (name, name.partition("_")[0], row["class_id"]):
                    splits |= {one: split for one in products_of[key] if splits.get(one) != "test"}
    if "test" not in splits.values():
        raise ValueError(f"{paths[0]} has no test images of these listings; remove it to split products by hash")
    return splits


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("out", None, "Folder of the catalog; its table is written to OUT.jsonl.", required=True)
    flags.DEFINE_enum("images", "small", SIZES, "Catalog images: small ones, of at most 256 pixels, or the originals.")
    flags.DEFINE_string("language", "en_US", "Language of the texts, if a listing has it.")


def main(*folders: str) -> None:
    convert(folders, Path(FLAGS.out), partial(write_table, size=FLAGS.images, language=FLAGS.language))


if __name__ == "__main__":
    define_flags()
    cli.run("abo", main, positional=True)
