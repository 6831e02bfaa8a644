"""Builds a catalog from a table of products.

    python -m data_prep.table --table=items.csv --images=DIR --out=DIR [--test_fraction=0.1] [--max_rejected=0.01]
        [--domains=page:image,spin:clip] [--same=duplicates.csv]
    python -m data_prep.table --table=export.csv --format=shopify --out=DIR

The table has the columns `product`, `item`, optionally `domain` (any names; without it, all rows are of the domain
page), `text` and `split` (train, val or test), and either `images` (one row per item; a list, or names separated by
"|") or `image` (one row per image) and optionally `time`. An item of several products has one row for each. A row
without images may name a `video` (mp4, mov, webm, mkv or gif), of which `start` and `end`, in seconds, bound a clip.

Without a split, products are split at random, but always alike. Products that are shown together stay together: of the
items that show several products, the one with the smallest hash is drawn for all products that it is the smallest of.
An item is left with the products of one split: those that were drawn with it, or the larger part.

The domains page, video and live are of the kinds image, clip and clip. Another domain is of kind clip if one of its
items has several images or a video. --domains states the kinds instead, and leaves out rows of other domains.

--same names a CSV file of pairs of products that are really one, with the columns `product` and `same_as`, such as the
one that an evaluation's report exports. All items become items of the product whose id is first in order.

Other columns, such as title, category, price, url and video, are carried along for search. --images may be left out if
all images are URLs, which `download` fetches. --format reads an export of a shop, see `data_prep.catalog.formats`; its
items are also written to OUT.jsonl.
"""

import collections
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from absl import flags

from data_prep.catalog.builder import MAX_REJECTED, MEMORY_LIMIT, CatalogRows, build_catalog
from data_prep.catalog.files import Catalog, format_summary
from data_prep.catalog.formats import FORMATS, convert_export, rejected_file, unpack_images
from data_prep.catalog.rejected_lines import MAX_PRODUCT_ID, Reason, RejectedLines
from data_prep.catalog.release_parser import START_BYTES
from data_prep.catalog.split_writer import DomainRows, RowSource, write_query
from data_prep.catalog.table_parser import SPLITS, TableRow, read_table
from data_prep.catalog.table_reader import table_files
from data_prep.common import cli
from data_prep.common.domains import ROPE_DOMAINS, format_domains, parse_domains, sort_domains
from data_prep.common.files import file_sha256
from data_prep.images.lookup import find_missing, format_hints
from data_prep.videos.clip_names import strip_fragment

FLAGS = flags.FLAGS

IDS_FILE = "ids.parquet"
RULES = 5  # raise when the same table gives another catalog
TEST_FRACTION = 0.1
SQL = Path(__file__).with_suffix(".sql")
_BATCH_ROWS = 16384
_BATCH_CHARACTERS = 16 << 20
_SAMPLED_IMAGES = 100_000  # names that are looked for in the images folder
_MANY_ITEMS = _FAR_MORE = 10  # a product with so many items, and so many times those of others, is suspicious


def build_table_catalog(
    table: Path,
    images: Path | None,
    out: Path,
    *,
    test_fraction: float = TEST_FRACTION,
    domains: Mapping[str, str] | None = None,
    same: Path | None = None,
    memory_limit: str = MEMORY_LIMIT,
    max_rejected: float = MAX_REJECTED,
    report: Callable[[str], None] = print,
) -> Catalog:
    """Builds the catalog of a table, or returns the finished one.

    The catalog also has a file ids.parquet (kind, id, original). It maps numbers to the ids of the table, for the kinds
    (product or a domain) whose ids had to be numbered.

    Args:
        table: A *.parquet, *.csv, *.tsv, *.jsonl, *.ndjson file or, of the last four, *.gz file; or a folder of such.
        images: Folder that contains the images; their names are paths in it. None if they are not checked.
        out: Folder of the catalog.
        test_fraction: Fraction of products in the test split, chosen by hash, for rows without a split.
        domains: Domains to include and their kinds. By default all, of kinds that follow from their numbers of images.
        same: CSV file of pairs of products that are one, see `read_same_products`.
        memory_limit: Memory limit of DuckDB, for example "3GB".
        max_rejected: Fraction of rows that may be invalid.
        report: Called with lines of progress.
    """
    files = table_files(table)
    if images and not images.is_dir():
        raise ValueError(f"images folder {images.absolute()} not found")

    joined = read_same_products(same) if same else {}

    def rejected_lines(split: str) -> RejectedLines:
        # One line at least, because a small fraction of a small table is less than one.
        return RejectedLines(split, table.name, max_rejected, partial(_read_lines, table), int(max_rejected > 0))

    def load(con: duckdb.DuckDBPyConnection, folder: Path) -> CatalogRows:
        rejected = rejected_lines("")
        used = _load_table(con, table, test_fraction, domains, joined, rejected)
        if same:
            _check_splits(con, same, joined)
            missing = len(joined) - len(used)
            note = f"; not in the table: {missing:,}" if missing else ""
            report(f"{same.name}: products joined with others: {len(used):,}{note}")
        kinds = domains or _domain_kinds(con)
        if images:
            _check_images(con, images, report)
        _check_largest_product(con, report)
        con.execute(f"INSERT INTO ids FROM number_ids({MAX_PRODUCT_ID})")
        numbered = "SELECT kind, id, original FROM ids WHERE NOT whole ORDER BY kind, id"
        write_query(con, numbered, folder / IDS_FILE)
        report(f"{table.name}: {rejected.lines:,} rows; domains: {format_domains(kinds)}")
        splits = {split: _sources(con, split, kinds, rejected_lines(split)) for split in SPLITS}
        return CatalogRows([rejected], {split: sources for split, sources in splits.items() if sources}, kinds)

    hashes = [file_sha256(file) for file in files]
    content = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    source = {"table": content, "test_fraction": test_fraction, "rules": RULES}
    source |= {"domains": format_domains(domains)} if domains else {}
    source |= {"same": file_sha256(same)} if same else {}
    return build_catalog(out, source, load, memory_limit=memory_limit, report=report)


def read_same_products(path: Path) -> dict[str, str]:
    """Returns product → the one that it is joined with, the first in order of all that are the same.

    The file has the columns `product` and `same_as`. The pairs (B, A) and (B, C) give {"B": "A", "C": "A"}. Raises
    ValueError if a column or a value is missing, or the file is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: save it as CSV UTF-8 ({error})") from error
    with io.StringIO(text, newline="") as file:
        rows = csv.DictReader(file)
        if missing := {"product", "same_as"} - set(rows.fieldnames or ()):
            raise ValueError(
                f"{path} has no column {' or '.join(sorted(missing))}; expected the columns product,same_as"
            )
        pairs = [((row["product"] or "").strip(), (row["same_as"] or "").strip()) for row in rows]
    parents: dict[str, str] = {}

    def root(product: str) -> str:
        while product in parents:
            product = parents[product]
        return product

    for line, pair in enumerate(pairs, start=2):
        if not all(pair):
            raise ValueError(f"{path}, line {line}: {pair[0] or pair[1] or 'it'!r} has no other product; name two")
        first, other = sorted(map(root, pair))
        if first != other:
            parents[other] = first
    return {product: root(product) for product in parents}


def _check_splits(con: duckdb.DuckDBPyConnection, same: Path, joined: Mapping[str, str]) -> None:
    """Raises ValueError if products of different splits, as the table states them, are joined."""
    query = (
        "SELECT product, string_agg(DISTINCT split, ' and ' ORDER BY split) FROM rows WHERE product IN "
        "(SELECT unnest(?)) GROUP BY product HAVING count(DISTINCT split) > 1 ORDER BY product LIMIT 1"
    )
    for product, splits in con.execute(query, [sorted(set(joined.values()))]).fetchall():
        others = ", ".join(sorted(name for name, first in joined.items() if first == product))
        raise ValueError(
            f"{same} joins {product!r} with {others}, but the table has them in {splits}: give them one split"
        )


def _load_table(
    con: duckdb.DuckDBPyConnection,
    table: Path,
    test_fraction: float,
    domains: Mapping[str, str] | None,
    joined: Mapping[str, str],
    rejected: RejectedLines,
) -> set[str]:
    """Creates the tables of `SQL`, and fills `rows` and `images` with those of the given or all domains.

    Returns the products that were joined with others.
    """
    con.execute(SQL.read_text(encoding="utf-8"))
    split_by_hash, used = False, set()
    for batch in _batches(table):
        rows, images, invalid = [], [], collections.defaultdict(list)
        for line, row in batch:
            if not isinstance(row, Reason) and domains and row.domain not in domains:
                row = Reason.DOMAIN
            if isinstance(row, Reason):
                invalid[row].append(line)
                continue
            drawn = not row.split
            split_by_hash |= drawn
            product = joined.get(row.product, row.product)
            used |= {row.product} & joined.keys()
            split = row.split or split_of(product, test_fraction)
            rows.append((split, drawn, row.domain, product, row.item, row.text, row.payload, line))
            images += [(split, row.domain, row.item, *image, i, line) for i, image in enumerate(row.images)]
        rejected.lines += len(batch)
        for reason, lines in invalid.items():
            rejected.add(reason, lines)
        _insert(con, "rows", rows)
        _insert(con, "images", images)
    if split_by_hash:
        _keep_items_together(con, test_fraction, rejected)
    return used


def _batches(table: Path) -> Iterator[list[tuple[int, TableRow | Reason]]]:
    """Yields the rows of a table with their lines, many at a time but with bounded memory."""
    batch, size = [], 0
    for line, _, row in read_table(table):
        batch.append((line, row))
        if not isinstance(row, Reason):
            size += len(row.text) + len(row.payload) + sum(len(name) for name, _ in row.images)
        if len(batch) >= _BATCH_ROWS or size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def split_of(product: str, test_fraction: float) -> str:
    """Returns the split of a product that is not shown with others; it does not depend on the other rows of a table."""
    drawn = int.from_bytes(hashlib.sha256(product.encode()).digest()[:8], "big") / 2**64
    return "test" if drawn < test_fraction else "train"


def _insert(con: duckdb.DuckDBPyConnection, name: str, rows: list[tuple]) -> None:
    if rows:
        columns = {str(i): pa.array(column) for i, column in enumerate(zip(*rows, strict=True))}
        con.register("batch", pa.table(columns))
        con.execute(f"INSERT INTO {name} SELECT * FROM batch")


def _keep_items_together(con: duckdb.DuckDBPyConnection, test_fraction: float, rejected: RejectedLines) -> None:
    """Draws products that share items together, and removes items from all splits but one, so that none leaks.

    Rows without a split follow other rows of their product that have one.
    """
    con.execute(f"INSERT INTO anchors FROM draw_anchors({test_fraction})")
    for source in ("anchors", "stated"):
        con.execute(
            f"UPDATE rows SET split = {source}.split FROM {source} WHERE rows.product = {source}.product AND drawn"
        )
    con.execute("UPDATE images SET split = rows.split FROM rows WHERE rows.line = images.line AND drawn")
    lines = np.array(con.execute("FROM lines_of_other_splits").fetchall(), np.int64).reshape(-1)
    rejected.add(Reason.OTHER_SPLIT, lines)
    con.register("left_out", pa.table({"line": lines}))
    for table in ("rows", "images"):
        con.execute(f"DELETE FROM {table} WHERE line IN (SELECT line FROM left_out)")


def _check_images(con: duckdb.DuckDBPyConnection, images: Path, report: Callable[[str], None]) -> None:
    """Reports missing images among the first names; raises ValueError if all are missing."""
    rows = con.execute(f"SELECT name FROM images ORDER BY line LIMIT {_SAMPLED_IMAGES}").fetchall()
    names = dict.fromkeys(strip_fragment(name) for (name,) in rows)
    if not (missing := find_missing(names, [images])):
        return
    hints = format_hints(missing) or f"names must be paths inside --images, and there is no {min(missing)!r}"
    if len(missing) == len(names):
        raise ValueError(f"none of {len(names)} images of the table is in {images.absolute()}: {hints}")
    report(f"warning: {len(missing)} of {len(names)} images of the table are not in {images.absolute()}: {hints}")


def _check_largest_product(con: duckdb.DuckDBPyConnection, report: Callable[[str], None]) -> None:
    """Warns if one product has far more items than the others, as if ids had been merged."""
    for product, items, total, median_of_others in con.execute("FROM largest_product").fetchall():
        if items >= _MANY_ITEMS and items > _FAR_MORE * median_of_others:
            report(
                f"warning: product {product!r} has {items:,} of {total:,} items, far more than the others: "
                "check that its id is not a placeholder and has not lost digits, as in a spreadsheet"
            )


def _domain_kinds(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Returns the domains of the table and their kinds: "clip" if some item has several images or a video."""
    several = dict(con.execute("FROM domains").fetchall())
    return {name: ROPE_DOMAINS.get(name) or ("clip" if several[name] else "image") for name in sort_domains(several)}


def _sources(
    con: duckdb.DuckDBPyConnection, split: str, domains: Iterable[str], rejected: RejectedLines
) -> dict[str, DomainRows]:
    """Returns domain → rows of a split, empty if it has none."""
    [(rejected.lines,)] = con.execute(f"SELECT count(*) FROM rows WHERE split = '{split}'").fetchall()

    def source(macro: str, domain: str) -> RowSource:
        view = f"CREATE TEMP VIEW source AS FROM {macro}('{split}', '{domain}')"
        return RowSource(lambda con: con.execute(view), rejected)

    if not rejected.lines:
        return {}
    numbered, extended = "SELECT 1 FROM ids WHERE NOT whole", "SELECT 1 FROM rows WHERE payload <> ''"
    has_payloads = con.execute(f"{numbered} UNION ALL {extended} LIMIT 1").fetchone()
    macros = ("pairs", "texts", "frames", *(["payloads"] if has_payloads else []))
    return {domain: DomainRows(*(source(macro, domain) for macro in macros)) for domain in domains}


def _read_lines(table: Path, numbers: np.ndarray) -> dict[int, str]:
    wanted = set(numbers.tolist())
    return {
        line: start.encode(errors="replace").decode().rstrip("\r\n")
        if isinstance(start, str)
        else json.dumps(start, ensure_ascii=True, default=str)[:START_BYTES]
        for line, start, _ in read_table(table)
        if line in wanted
    }


def define_flags() -> None:
    """Defines the flags of the command."""
    formats = "*.parquet, *.csv, *.tsv, *.jsonl, *.ndjson; the last four also as *.gz"
    flags.DEFINE_string("table", None, f"The table ({formats}), or a folder of such files.", required=True)
    flags.DEFINE_string("images", None, "Folder with the images and videos. Their names are paths in it, or URLs.")
    flags.DEFINE_string("format", None, f"Export of a shop: {', '.join(FORMATS)}, or a file with a column map.")
    flags.DEFINE_string("out", None, "Folder of the catalog.", required=True)
    flags.DEFINE_float("test_fraction", TEST_FRACTION, "Fraction of products to test, for rows without a split.", 0, 1)
    flags.DEFINE_list("domains", None, "Domains to include, with kinds image or clip: page:image,spin:clip.")
    flags.DEFINE_string("same", None, "CSV file of products that are one, with the columns product and same_as.")
    flags.DEFINE_string("memory_limit", MEMORY_LIMIT, "Memory for sorting. The rest takes about 1 GB more.")
    flags.DEFINE_float("max_rejected", MAX_REJECTED, "Fraction of rows that may be invalid.", 0, 1)


def main() -> None:
    table, out, images = Path(FLAGS.table), Path(FLAGS.out), Path(FLAGS.images) if FLAGS.images else None
    converted = out.with_name(f"{out.name}.jsonl")
    converted.parent.mkdir(parents=True, exist_ok=True)
    if FLAGS.format:
        count, rejected = convert_export(table, FLAGS.format, converted, FLAGS.max_rejected)
        print(f"{table}: {count:,} images, listed in {converted}")
        if rejected.invalid:
            print(f"{table}: left out {rejected.invalid:,} of {rejected.lines:,} lines, see {rejected_file(converted)}")
        table = converted
    elif unpacked := unpack_images(table, converted):
        print(f"{table}: its images are unpacked into {unpacked}; name this folder to build (--images)")
        table, images = converted, unpacked
    catalog = build_table_catalog(
        table,
        images,
        out,
        test_fraction=FLAGS.test_fraction,
        domains=parse_domains(FLAGS.domains) if FLAGS.domains else None,
        same=Path(FLAGS.same) if FLAGS.same else None,
        memory_limit=FLAGS.memory_limit,
        max_rejected=FLAGS.max_rejected,
        report=partial(print, flush=True),
    )
    print(format_summary(catalog.summary))


if __name__ == "__main__":
    define_flags()
    cli.run("table", main)
