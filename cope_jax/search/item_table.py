"""Texts and columns of the items of a library: search by words (BM25) and filters in SQL.

A folder has `items.db`, an SQLite database with a table per domain, and `<domain>/`, the index of its words.
"""

import functools
import logging
import re
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bm25s
import numpy as np

from cope_jax.data.records import Item, Records
from data_prep.common.files import atomic_folder
from data_prep.common.payload import OWN_ITEM, OWN_PRODUCTS

DATABASE = "items.db"
VERSION = 2  # of the folder; one of another version is written again
ROW = '"row "'  # no column of a user's table, whose names do not end with a space
OWN_COLUMNS = ("item", "product", "text")
INDEXED_WORDS = 200  # of an item; the rest of a long transcript is not searched
MAX_SECONDS = 10.0  # of a filter
MAX_CHOICES = 40  # values of a column that users choose from; columns with more are filtered in SQL
CHARACTER = "'"  # around texts in SQL
LIMITS = {sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000, sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200}  # of values in it
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"  # written without spaces between words
_WORDS = re.compile(rf"([{_CJK}]+)|([^\W_{_CJK}]+)")


@dataclass(frozen=True)
class ItemTable:
    """The texts and columns of all items, by domain and row."""

    folder: Path
    sizes: dict[str, int]  # number of items of each domain

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns for filters: `item`, `product`, `text` and those of the user's table."""
        return tuple(dict.fromkeys(name for own in self._columns.values() for name in own))

    @functools.cached_property
    def choices(self) -> dict[str, dict[str, str]]:
        """Columns of the user's table with few values, all texts, and value → the filter for it."""
        found: dict[str, dict[str, str]] = {}
        for name in self.columns[len(OWN_COLUMNS) :]:
            column = _quote(name)
            select, where = f"SELECT DISTINCT {column}", f"WHERE {column} <> '' LIMIT {MAX_CHOICES + 1}"
            domains = [domain for domain, own in self._columns.items() if name in own]
            values = {value for domain in domains for (value,) in self._read(select, domain, where)}
            if 2 <= len(values) <= MAX_CHOICES and all(isinstance(value, str) for value in values):
                found[name] = {value: f"{column} = {_quote(value, CHARACTER)}" for value in sorted(values)}
        return found

    def product_title(self, product: int | str) -> str:
        """Returns the title, or else the text, of some item of a product; "" if none has one."""
        for domain, own in self._columns.items():
            title = "coalesce(nullif(title, ''), text)" if "title" in own else "text"
            for (found,) in self._read(f"SELECT {title}", domain, "WHERE product = ?", str(product)):
                if found:
                    return str(found)
        return ""

    @functools.cached_property
    def _columns(self) -> dict[str, tuple[str, ...]]:
        """The columns of each domain."""
        found = {}
        for domain in self.sizes:
            with closing(self._connect()) as database:
                description = database.execute(f'SELECT * FROM "{domain}" LIMIT 0').description
            found[domain] = tuple(name for name, *_ in description[1:])  # without ROW
        return found

    def _read(self, select: str, domain: str, where: str, *values: str) -> list[tuple[Any, ...]]:
        with closing(self._connect()) as database:
            return database.execute(f"{select} FROM {_quote(domain)} {where}", values).fetchall()

    def select(self, domain: str, where: str) -> np.ndarray:
        """Returns bool[N], for which items an SQL expression such as "category = 'shoes' and price < 50" is true.

        It may come from a stranger: it cannot write, read anything else, contain subqueries, or run for longer than
        MAX_SECONDS.

        Raises:
            ValueError: The expression is invalid.
        """
        mask = np.zeros(self.sizes[domain], bool)
        if not len(mask):
            return mask  # without items, a table lacks the columns of the others
        # Within CASE … END, nothing but an expression is valid.
        query = f'SELECT {ROW} FROM "{domain}" WHERE CASE WHEN (\n{where}\n) THEN 1 END'
        try:
            with closing(self._connect()) as database:
                mask[[row for (row,) in database.execute(query)]] = True
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ValueError(f"filter {where!r}: {error}; the columns are {', '.join(self.columns)}") from error
        return mask

    def match(self, domain: str, text: str, top: int, mask: np.ndarray | None = None) -> list[tuple[float, int]]:
        """Returns the scores and rows of the `top` items with words of a text, best first; `mask` allows items."""
        words = list(dict.fromkeys(split_words(text)))
        if not words or domain not in self._indexes:
            return []
        scores = self._indexes[domain].get_scores(words)
        scores = scores if mask is None else scores * mask
        rows = np.argpartition(-scores, min(top, len(scores) - 1))[:top]
        rows = rows[np.lexsort((rows, -scores[rows]))]
        return [(float(scores[row]), int(row)) for row in rows if scores[row] > 0]

    @functools.cached_property
    def _indexes(self) -> dict[str, bm25s.BM25]:
        folders = {domain: self.folder / domain for domain in self.sizes}
        return {domain: bm25s.BM25.load(path, mmap=True) for domain, path in folders.items() if path.exists()}

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(f"file:{quote(str(self.folder.absolute() / DATABASE))}?mode=ro", uri=True)
        for limit, value in LIMITS.items():
            database.setlimit(limit, value)
        # A single SELECT may read columns and call functions; SQLite loads none from files.
        allowed = Counter({sqlite3.SQLITE_SELECT: 1, sqlite3.SQLITE_READ: 1 << 20, sqlite3.SQLITE_FUNCTION: 1 << 20})

        def authorize(action: int, *_: object) -> int:
            allowed[action] -= 1
            return sqlite3.SQLITE_OK if allowed[action] >= 0 else sqlite3.SQLITE_DENY

        database.set_authorizer(authorize)
        deadline = time.monotonic() + MAX_SECONDS
        database.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
        return database


def open_item_table(folder: Path, records: Records) -> ItemTable:
    """Opens the table of the items in records, and writes it first if it does not exist in this version."""
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    if _stored_version(folder) != VERSION:
        with (
            atomic_folder(folder, replace=True) as unfinished,
            closing(sqlite3.connect(unfinished / DATABASE)) as database,
        ):
            database.execute(f"PRAGMA user_version = {VERSION}")
            for domain, items in records.items.items():
                database.execute(f'CREATE TABLE "{domain}" ({", ".join((f"{ROW} INTEGER PRIMARY KEY", *OWN_COLUMNS))})')
                rows = (items[row] for row in range(len(items)))
                words = [_insert(database, domain, row, item) for row, item in enumerate(rows)]
                if any(words):
                    index = bm25s.BM25()
                    index.index(words, show_progress=False)
                    index.save(unfinished / domain)
                database.execute(f'CREATE INDEX "{domain} by product" ON "{domain}" (product)')
            database.commit()
    return ItemTable(folder, {domain: len(items) for domain, items in records.items.items()})


def _stored_version(folder: Path) -> int:
    """The version of a folder; 0 without a database, and of those before versions were stored."""
    if not (folder / DATABASE).exists():
        return 0
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        return database.execute("PRAGMA user_version").fetchone()[0]


def _insert(database: sqlite3.Connection, domain: str, row: int, item: Item) -> list[str]:
    """Inserts an item and returns its words."""
    columns = item.columns | {"item": item.own_id, "product": "|".join(map(str, item.own_products)), "text": item.text}
    known = {name for name, *_ in database.execute(f'SELECT * FROM "{domain}" LIMIT 0').description}
    for name in columns:
        if name not in known:  # numeric: "52.00" is a number, and other texts stay texts
            database.execute(f'ALTER TABLE "{domain}" ADD COLUMN {_quote(name)} NUMERIC')
    names = ", ".join(map(_quote, columns))
    database.execute(
        f'INSERT INTO "{domain}" ({ROW}, {names}) VALUES (?{", ?" * len(columns)})', (row, *columns.values())
    )
    # The text is last, because a long one is cut.
    texts = [str(columns.get(name, "")) for name in (OWN_ITEM, OWN_PRODUCTS, "title", "category", "text")]
    return split_words(" ".join(dict.fromkeys(texts)))[:INDEXED_WORDS]


def _quote(name: str, mark: str = '"') -> str:
    return mark + name.replace(mark, 2 * mark) + mark


def split_words(text: str) -> list[str]:
    """Returns the words of a text, without plural endings, and single characters and pairs of Chinese and Japanese.

    "Red Hoodies 红裙" gives ["red", "hoodie", "红", "裙", "红裙"].
    """
    words = []
    for characters, word in _WORDS.findall(text.casefold()):
        pairs = [characters[i : i + 2] for i in range(len(characters) - 1)]
        words += [*characters, *pairs] if characters else [re.sub("(?<=s|x|z|h)es$|(?<=[^s]{2})s$", "", word)]
    return words
