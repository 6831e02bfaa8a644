"""The whole download against a server that misbehaves: what arrives, what is asked, what a kill leaves."""

import asyncio
import collections
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.catalog_files import Catalog, write_catalog
from data_prep.downloading import run
from data_prep.downloading.failures import DownloadError, Failure, PreflightError, Unavailable
from data_prep.downloading.fetch import Limits
from data_prep.release import DOMAINS, Frame, Item
from tests.data_prep.misbehaving_server import BEHAVIOURS, MAX_BYTES, PLACEHOLDER_NAME, Server, draw_behaviours, image

ROOT = Path(__file__).parents[2]
LIMITS = Limits(rate=2000, concurrency=32, deadline=1.5, max_bytes=MAX_BYTES, tries=3, backoff=0.02)


def make_catalog(folder: Path, counts: dict[str, int], *, split="train", frames=3) -> Catalog:
    """A catalog with `counts` items a domain, each of up to `frames` frames; item 1 of a domain has none."""
    domains = {
        domain: [
            Item(i, "", (i,), tuple(Frame(t, f"{split} {domain} {i}-{t}é.jpg") for t in range(i % frames + (i != 1))))
            for i in range(counts.get(domain, 0))
        ]
        for domain in DOMAINS
    }
    for items in domains.values():
        items[1:2] = [Item(item.item_id, "", item.product_ids, ()) for item in items[1:2]]
    return write_catalog(folder, {split: domains})


def names_of(catalog: Catalog, split="train", domains=DOMAINS) -> list[str]:
    return [frame.name for domain in domains for item in catalog.items(split, domain) for frame in item.frames]


def fetch(catalog: Catalog, out: Path, server: Server, *, lines: list[str] | None = None, limits=LIMITS, **options):
    report = (lambda line: None) if lines is None else lines.append
    options = run.Options(**{"url_prefix": server.url, "shard_frames": 40, "limits": limits} | options)
    return asyncio.run(run.download(catalog, out, options, report))


def read_ledgers(out: Path) -> dict[str, dict]:
    """name → its row."""
    return {row["name"]: row for path in sorted(out.glob("*/*/*.parquet")) for row in pq.read_table(path).to_pylist()}


def read_images(out: Path) -> dict[str, bytes]:
    """name → bytes, by what the tars say alone; order as in them."""
    found = {}
    for path in sorted(out.glob("*/*/*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            if name.endswith(".json"):
                told = json.loads(data)
                found[told["name"]] = members[f"{told['key']}.jpg"]
    return found


def test_every_good_image_arrives_byte_by_byte_and_every_other_is_named_by_its_fault(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"page": 61, "video": 70, "live": 53}, frames=6)
    names = names_of(catalog)
    behaviours = draw_behaviours([name.replace(" ", "%20").replace("é", "%C3%A9") for name in names], seed=5)
    wanted = {name: BEHAVIOURS[behaviour] for name, behaviour in zip(names, behaviours.values(), strict=True)}
    assert set(behaviours.values()) == set(BEHAVIOURS)
    with Server(behaviours, default="placeholder") as server:
        summary = fetch(catalog, tmp_path / "out", server)
        print(server.requests.total(), server.answers); asked = server.requests.total()
        assert fetch(catalog, tmp_path / "out", server) == summary
        assert server.requests.total() == asked  # the second run asks nothing

    rows = read_ledgers(tmp_path / "out")
    assert {name: row["failure"] for name, row in rows.items()} == wanted
    arrived = [name for name in names if wanted[name] is None]
    images = read_images(tmp_path / "out")
    quoted = dict(zip(names, behaviours, strict=True))
    assert list(images) == sorted(arrived, key=lambda name: (sorted(DOMAINS).index(name.split()[1]), names.index(name)))
    assert {name: images[name] == image(body(quoted, behaviours, name)) for name in arrived} == dict.fromkeys(
        arrived, True
    )


def body(quoted, behaviours, name):
    return f"moved-{quoted[name]}" if behaviours[quoted[name]] == "redirect" else quoted[name]
