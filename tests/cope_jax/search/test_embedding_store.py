"""Embeddings as Parquet: every item once and in order, finished files kept over a kill, other sources noticed."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cope_jax.data.records import open_records
from cope_jax.domains import DOMAINS
from cope_jax.evaluation import loaded_run as loaded
from cope_jax.evaluation.evaluate_run import embed_split
from cope_jax.runs.checkpoints import Checkpoints
from cope_jax.runs.config_file import load_config
from cope_jax.search import embedding_store as parquet
from cope_jax.search.embedding_store import embed_to_parquet, vectors_of


@pytest.fixture(scope="module")
def written(workdir, tmp_path_factory):
    """The test split in files of seven rows."""
    out = tmp_path_factory.mktemp("embeddings") / "out"
    return out, embed_to_parquet(workdir, out, split="test", rows=7)


@pytest.fixture(scope="module")
def records(workdir):
    return open_records(load_config(workdir).data.data_dir, "test")


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_item_is_there_once_and_in_order(written, records, domain):
    out, sizes = written
    tables = [pq.read_table(path) for path in sorted((out / domain).iterdir())]
    assert [len(table) for table in tables[:-1]] == [7] * (len(tables) - 1)
    rows = pa.concat_tables(tables).to_pylist()
    items = [records.items[domain][row] for row in range(len(records.items[domain]))]
    assert len(rows) == len(items) == sizes[domain]
    assert [(row["domain"], row["item_id"]) for row in rows] == [(domain, item.item_id) for item in items]
    assert [tuple(row["product_ids"]) for row in rows] == [item.product_ids for item in items]
    assert tables[0].schema.field("embedding").type == pa.list_(pa.float32(), 16)


def test_embeddings_are_those_of_evaluation(written, workdir):
    """There in batches over the whole split, here in batches that begin anew with each file."""
    out, _ = written
    config = load_config(workdir)
    with Checkpoints(workdir) as checkpoints:
        items = embed_split(loaded.load_run(config, workdir, checkpoints, 6), step=6)
    for domain, own in items.items():
        ids, vectors = (np.concatenate(parts) for parts in zip(*vectors_of(out, domain), strict=True))
        np.testing.assert_array_equal(ids, own.item_ids)
        np.testing.assert_allclose(vectors, own.vectors, atol=1e-5)


def test_a_killed_job_keeps_its_finished_files_and_ends_as_others(workdir, written, tmp_path, monkeypatch):
    reference, _ = written
    out, written_files = tmp_path / "out", []
    out.mkdir()
    (out / ".manifest.json.partial").touch()  # as an even earlier kill leaves it

    def dies_late(path, content):
        if len(written_files) == 3:
            path.with_name(f".{path.name}.partial").write_bytes(content[:100])
            raise KeyboardInterrupt
        written_files.append(path)
        write_whole(path, content)

    write_whole = parquet.write_whole
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "write_whole", dies_late)
        with pytest.raises(KeyboardInterrupt):
            embed_to_parquet(workdir, out, split="test", rows=7)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert len(kept) == 2  # the first of the three is the manifest
    embed_to_parquet(workdir, out, split="test", rows=7)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    names = sorted(path.relative_to(reference) for path in reference.rglob("*") if path.is_file())
    assert sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) == names
    for name in names:
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name


def test_a_finished_job_computes_nothing(workdir, written, monkeypatch):
    out, sizes = written
    monkeypatch.setattr(parquet, "load_run", None)
    assert embed_to_parquet(workdir, out, split="test", rows=7) == sizes


def test_another_source_is_noticed(workdir, written, tmp_path):
    out, _ = written
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest) == {
        "run",
        "step",
        "average",
        "checkpoint",
        "split",
        "data",
        "frames",
        "width",
        "dtype",
        "rows",
        "items",
    }
    with pytest.raises(ValueError, match=r"holds other embeddings.*\n  step: 6 there, 4 now\n  checkpoint: "):
        embed_to_parquet(workdir, out, split="test", rows=7, step=4)
    with pytest.raises(ValueError, match=r"data: '\w+' there, '\w+' now"):
        embed_to_parquet(workdir, out, split="train", rows=7)
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="is not empty and has no manifest"):
        embed_to_parquet(workdir, tmp_path, split="test")


def test_lost_rows_are_noticed(workdir, written, tmp_path):
    out, _ = written
    copy = tmp_path / "00000-of-00002.parquet"
    pq.write_table(pq.read_table(next((out / "page").iterdir())).slice(1), copy)
    with pytest.raises(ValueError, match=r"rows got lost.*has 6 rows instead of 7"):
        parquet.check_rows([parquet.Shard("page", 0, 7, copy)])


def test_half_precision(workdir, tmp_path, written):
    embed_to_parquet(workdir, tmp_path / "out", split="test", dtype="float16")
    field = pq.read_schema(next((tmp_path / "out" / "live").iterdir())).field("embedding")
    assert field.type == pa.list_(pa.float16(), 16)
    (_, half), full = next(vectors_of(tmp_path / "out", "live")), vectors_of(written[0], "live")
    np.testing.assert_allclose(half, np.concatenate([vectors for _, vectors in full]), atol=1e-3)
