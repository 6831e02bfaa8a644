"""Shared by the sources that write a table first: products joined by common keys, and the command itself."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.catalog.files import format_summary
from data_prep.table import build_table_catalog


def join_names(names: Sequence[str], keys: Iterable[Iterable[Hashable]]) -> list[str]:
    """Returns the smallest name of each group; elements with a key in common, directly or not, are a group.

    The names b, c, a, d with the keys (1), (1, 2), (2), (3) give a, a, a, d.
    """
    nodes: dict[Hashable, int] = {}
    pairs = [(i, len(names) + nodes.setdefault(key, len(nodes))) for i, own in enumerate(keys) for key in own]
    edges, size = np.array(pairs, np.int64).reshape(-1, 2).T, len(names) + len(nodes)
    graph = coo_array((np.ones(len(pairs), bool), (edges[0], edges[1])), shape=(size, size))
    groups = connected_components(graph, directed=False)[1][: len(names)].tolist()
    smallest: dict[int, str] = {}
    for group, name in zip(groups, names, strict=True):
        smallest[group] = min(smallest.get(group, name), name)
    return [smallest[group] for group in groups]


def convert(folders: Sequence[str], out: Path, write: Callable[[Path, Path], Mapping[str, int]]) -> None:
    """Makes the catalog `out` of a download.

    Args:
        folders: The words of the command line: the folder of the download.
        out: Folder of the catalog.
        write: Writes the table, OUT.jsonl, of a folder, and returns counts to print.
    """
    if len(folders) != 1:
        raise ValueError(f"{len(folders)} folders are given; expected one, that of the download")
    folder, table = Path(folders[0]), out.with_name(f"{out.name}.jsonl")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    table.parent.mkdir(parents=True, exist_ok=True)
    counts = write(folder, table)
    print("\n".join(f"{count:>9,} {name}" for name, count in counts.items()))
    catalog = build_table_catalog(table, folder, out, report=partial(print, flush=True))
    print(format_summary(catalog.summary))
