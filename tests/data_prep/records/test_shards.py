"""Tests how items are divided into shards, when a shard is finished, and how rows are numbered."""

import dataclasses
import itertools

import numpy as np

from data_prep.catalog.files import Catalog
from data_prep.images import index as image_index
from data_prep.records import shards
from data_prep.records.shards import Span, kept_rows


def test_shards_divide_between_items():
    counts = [2, 2, 1, 5, 0, 0]
    wanted = [Span(0, 2, 0, 4), Span(2, 3, 4, 5), Span(3, 4, 5, 10), Span(4, 6, 10, 10)]
    assert shards.plan_shards(counts, max_frames=4) == wanted
    assert shards.plan_shards(counts, max_frames=64) == [Span(0, 6, 0, 10)]
    assert shards.plan_shards([], max_frames=4) == []
    assert shards.plan_shards([0], max_frames=4) == [Span(0, 1, 0, 0)]


def test_every_plan_covers_all_items_and_frames_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = rng.integers(0, 9, rng.integers(1, 40)).tolist()
        spans = shards.plan_shards(counts, max_frames=int(rng.integers(1, 20)))
        assert [i for span in spans for i in range(span.start, span.stop)] == list(range(len(counts)))
        assert [span.last_frame - span.first_frame for span in spans] == [
            sum(counts[span.start : span.stop]) for span in spans
        ]
        assert spans[0].first_frame == 0
        assert all(a.last_frame == b.first_frame for a, b in itertools.pairwise(spans))


def test_the_number_of_shards_grows_with_the_data_set():
    assert [shards.frames_per_shard(frames) for frames in (0, 500, 16_000, 10**8)] == [64, 64, 1000, 16_384]


def test_a_shard_is_finished_only_if_it_matches_its_report(inputs, tmp_path):
    image_index.write_index(tmp_path / "index", Catalog(inputs.catalog), ["train"], inputs.images)
    places = image_index.places_path(tmp_path / "index", "train", "live")
    shard = shards.Shard(tmp_path / "x", inputs, "train", "live", Span(0, 1, 0, 1), places)
    assert shards.find_finished(shard) is None
    report = shards.write_shard(shard)
    assert shards.find_finished(shard) == report
    assert shards.finish_shard(shard) == (report, True)
    assert shards.find_finished(dataclasses.replace(shard, span=Span(0, 2, 0, 4))) is None
    whole = shard.path.read_bytes()
    shard.path.write_bytes(whole[:-1])
    assert shards.find_finished(shard) is None
    changed = bytearray(whole)
    changed[whole.index(b"JFIF") + 200] ^= 1  # in a frame
    shard.path.write_bytes(changed)
    assert shards.find_finished(shard) is None
    shard.path.write_bytes(whole)
    assert shards.find_finished(shard) == report
    shards.report_path(shard.path).write_text("{}")
    assert shards.find_finished(shard) is None


def test_kept_rows_are_numbered_without_gaps():
    assert kept_rows((0, 1, 4), np.array([1, 3])) == (0, 2)
    rng = np.random.default_rng(1)
    dropped = np.flatnonzero(rng.random(60) < 0.4)
    new = {row: number for number, row in enumerate(row for row in range(60) if row not in set(dropped.tolist()))}
    for _ in range(20):
        rows = tuple(sorted(rng.choice(60, 7, replace=False).tolist()))
        assert kept_rows(rows, dropped) == tuple(new[row] for row in rows if row in new)
    assert kept_rows((), dropped) == ()
    assert kept_rows((5, 9), np.zeros(0, np.int64)) == (5, 9)
