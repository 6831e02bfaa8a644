"""Embeddings in Parquet files: complete and in order, resumed after interruptions, never of mixed sources."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cope_jax.data.records import Item, open_records
from cope_jax.evaluation.embed_items import LoadedRun, load_run
from cope_jax.evaluation.evaluate_run import embed_split
from cope_jax.runs.config_file import load_config
from cope_jax.search import embedding_store
from cope_jax.search.embedding_store import embed_to_parquet, read_manifest, read_vectors, shorten, write_shard
from data_prep.common.domains import DOMAINS
from tests.conftest import rename_domains


@pytest.fixture(scope="module")
def written(workdir, tmp_path_factory):
    """The test split in files of seven rows."""
    out = tmp_path_factory.mktemp("embeddings") / "out"
    return out, embed_to_parquet(workdir, out, split="test", rows=7)


@pytest.fixture(scope="module")
def records(workdir):
    return open_records(load_config(workdir).data.data_dir, "test")


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_item_is_written_once_and_in_order(written, records, domain):
    out, sizes = written
    tables = [pq.read_table(path) for path in sorted((out / domain).iterdir())]
    assert [len(table) for table in tables[:-1]] == [7] * (len(tables) - 1)
    rows = pa.concat_tables(tables).to_pylist()
    items = [records.items[domain][row] for row in range(len(records.items[domain]))]
    assert len(rows) == len(items) == sizes[domain]
    assert [(row["domain"], row["item_id"]) for row in rows] == [(domain, item.item_id) for item in items]
    assert [tuple(row["product_ids"]) for row in rows] == [item.product_ids for item in items]
    assert tables[0].schema.field("embedding").type == pa.list_(pa.float32(), 16)


def test_embeddings_equal_those_of_evaluation(written, workdir):
    """Batches differ: here they start anew with each file."""
    out, _ = written
    config = load_config(workdir)
    items = embed_split(load_run(config, workdir, 6), step=6)
    for domain, own in items.items():
        ids, vectors = (np.concatenate(parts) for parts in zip(*read_vectors(out, domain), strict=True))
        np.testing.assert_array_equal(ids, own.item_ids)
        np.testing.assert_allclose(vectors, own.vectors, atol=1e-5)


@pytest.mark.slow
def test_interrupted_job_resumes_and_writes_the_same_files(workdir, written, tmp_path, monkeypatch):
    reference, _ = written
    out, written_files = tmp_path / "out", []
    out.mkdir()
    (out / "manifest.json.1.tmp").touch()  # left by an earlier killed job

    def fail_at_the_third_file(path, *arguments):
        if len(written_files) == 2:
            path.with_name(f"{path.name}.1.tmp").write_bytes(b"PAR1")
            raise KeyboardInterrupt
        written_files.append(path)
        write_shard(path, *arguments)

    write_shard = embedding_store.write_shard
    with monkeypatch.context() as patch:
        patch.setattr(embedding_store, "write_shard", fail_at_the_third_file)
        with pytest.raises(KeyboardInterrupt):
            embed_to_parquet(workdir, out, split="test", rows=7)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert kept.keys() == set(written_files)
    embed_to_parquet(workdir, out, split="test", rows=7)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    names = sorted(path.relative_to(reference) for path in reference.rglob("*") if path.is_file())
    assert sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) == names
    for name in names:
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name


@pytest.mark.parametrize(
    ("dtype", "kind", "size", "error"),
    [("float16", "halffloat", 24, 1e-3), ("int8", "int8", 24, 1e-3), ("binary", "uint8", 3, 0.4)],
)
def test_small_types_are_read_as_unit_vectors(tmp_path, dtype, kind, size, error):
    scales = 1 / np.arange(1, 25) ** 2  # as on principal axes, where the last values are small, and their signs noise
    vectors = (np.random.default_rng(0).normal(size=(5, 24)) * scales).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    (tmp_path / "page").mkdir()
    path = tmp_path / "page/00000-of-00001.parquet"
    write_shard(path, "page", vectors, [Item(row, "", (1,), ()) for row in range(5)], dtype)
    assert str(pq.read_schema(path).field("embedding").type) == f"fixed_size_list<element: {kind}>[{size}]"
    ((_, found),) = read_vectors(tmp_path, "page")
    # Signs of random directions keep a cosine of √(2/π) = 0.80, those of these axes themselves less than 0.5.
    assert (1 - (found * vectors).sum(axis=-1)).max() < error
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-3)


def test_signs_of_an_earlier_version_are_refused(tmp_path):
    manifest = {"items": {}, "rows": 8, "width": 8, "dtype": "binary"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"remove the folder and embed again$"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"rotated": True}))
    assert read_manifest(tmp_path)["width"] == 8


def test_the_first_values_are_kept_and_scaled(workdir, written, tmp_path):
    embed_to_parquet(workdir, tmp_path / "short", split="test", dims=8, dtype="int8")
    (_, long), *_ = read_vectors(written[0], "live")
    ((_, short),) = read_vectors(tmp_path / "short", "live")
    expected = long[:, :8] / np.linalg.norm(long[:, :8], axis=-1, keepdims=True)
    np.testing.assert_allclose(short[: len(long)], expected, atol=0.01)
    assert read_manifest(tmp_path / "short")["width"] == 8
    for dims, dtype, message in ((17, "int8", "1 to 16 values$"), (12, "binary", "16 values, in steps of 8")):
        with pytest.raises(ValueError, match=rf"--dims is {dims}; embeddings of this run have .*{message}"):
            embed_to_parquet(workdir, tmp_path / "other", split="test", dims=dims, dtype=dtype)


def test_finished_job_computes_nothing(workdir, written, monkeypatch):
    out, sizes = written
    monkeypatch.setattr(embedding_store, "load_run", None)
    assert embed_to_parquet(workdir, out, split="test", rows=7) == sizes


def test_embeddings_of_another_source_are_an_error(workdir, written, tmp_path):
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
    with pytest.raises(ValueError, match=r"has other embeddings.*\n  checkpoint: .*\n  step: 6 stored, 4 requested"):
        embed_to_parquet(workdir, out, split="test", rows=7, step=4)
    with pytest.raises(ValueError, match=r"data: '\w+' stored, '\w+' requested"):
        embed_to_parquet(workdir, out, split="train", rows=7)
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="is not empty and has no manifest"):
        embed_to_parquet(workdir, tmp_path, split="test")


def test_missing_rows_are_an_error(workdir, written, tmp_path):
    out, _ = written
    copy = tmp_path / "00000-of-00002.parquet"
    pq.write_table(pq.read_table(next((out / "page").iterdir())).slice(1), copy)
    with pytest.raises(ValueError, match=r"rows are missing.*has 6 rows instead of 7"):
        embedding_store.check_shards([embedding_store.Shard("page", 0, 7, copy)])


@pytest.mark.slow
def test_update_computes_only_what_is_new(workdir, written, data_dir, tmp_path, monkeypatch):
    """To half of the pages and all videos, all others are added; then all but these are removed."""
    half = rename_domains(data_dir, tmp_path / "half", "rope", {"page": ("page", 0, 2), "video": ("video", 0, 1)})
    out, computed = tmp_path / "out", []
    embed_to_parquet(workdir, out, split="test", rows=7, data_dir=half)
    embed_rows = LoadedRun.embed_rows

    def count(run, domain, rows, *arguments):
        computed.append((domain, len(rows)))
        return embed_rows(run, domain, rows, *arguments)

    monkeypatch.setattr(LoadedRun, "embed_rows", count)
    with pytest.raises(ValueError, match="has other embeddings"):
        embed_to_parquet(workdir, out, split="test", rows=7)
    sizes = embed_to_parquet(workdir, out, split="test", rows=7, update=True)
    assert {domain for domain, _ in computed} == {"page", "live"}
    assert sum(size for _, size in computed) == sizes["page"] // 2 + sizes["live"]
    for domain in DOMAINS:
        for found, fresh in zip(read_vectors(out, domain), read_vectors(written[0], domain), strict=True):
            np.testing.assert_array_equal(found[0], fresh[0])
            np.testing.assert_allclose(found[1], fresh[1], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]
    monkeypatch.setattr(embedding_store, "load_run", lambda *_, **__: pytest.fail("the model was loaded"))
    sizes = embed_to_parquet(workdir, out, split="test", rows=7, data_dir=half, update=True)
    assert sizes == {
        "page": -(-len(embedding_store.read_item_ids(written[0], "page")) // 2),
        "video": written[1]["video"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(("step", "computed"), [(4, DOMAINS), (6, ("page", "live"))])
def test_an_interrupted_update_is_continued_only_for_the_same_step(
    workdir, written, data_dir, tmp_path, monkeypatch, step, computed
):
    half = rename_domains(data_dir, tmp_path / "half", "rope", {"page": ("page", 0, 2), "video": ("video", 0, 1)})
    embed_to_parquet(workdir, tmp_path / "out.previous", split="test", rows=7, data_dir=half, step=step)
    embed_rows, domains = LoadedRun.embed_rows, set()

    def note(run, domain, *arguments):
        domains.add(domain)
        return embed_rows(run, domain, *arguments)

    monkeypatch.setattr(LoadedRun, "embed_rows", note)
    embed_to_parquet(workdir, tmp_path / "out", split="test", rows=7, step=6, update=True)
    assert domains == set(computed)
    assert not (tmp_path / "out.previous").exists()
    for domain in DOMAINS:
        for found, fresh in zip(read_vectors(tmp_path / "out", domain), read_vectors(written[0], domain), strict=True):
            np.testing.assert_allclose(found[1], fresh[1], atol=1e-5)


def test_the_work_directory_may_be_renamed(workdir, written, tmp_path, monkeypatch):
    out, sizes = written
    renamed = shutil.copytree(workdir, tmp_path / "renamed")
    monkeypatch.setattr(embedding_store, "load_run", lambda *_, **__: pytest.fail("the model was loaded"))
    assert embed_to_parquet(renamed, out, split="test", rows=7) == sizes


def test_half_precision(workdir, tmp_path, written):
    embed_to_parquet(workdir, tmp_path / "out", split="test", dtype="float16")
    field = pq.read_schema(next((tmp_path / "out" / "live").iterdir())).field("embedding")
    assert field.type == pa.list_(pa.float16(), 16)
    (_, half), full = next(read_vectors(tmp_path / "out", "live")), read_vectors(written[0], "live")
    np.testing.assert_allclose(half, np.concatenate([vectors for _, vectors in full]), atol=1e-3)


def test_shortened_vectors_have_length_1():
    vectors = np.array([[3, 4, 12], [0, 0, 1]], np.float32)
    np.testing.assert_allclose(shorten(vectors, 2), [[0.6, 0.8], [0, 0]])
    assert shorten(vectors, 3) is vectors
