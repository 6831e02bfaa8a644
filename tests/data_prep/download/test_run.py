"""Whole downloads from a misbehaving server: what arrives, what is requested, what a killed process leaves."""

import asyncio
import dataclasses
import fcntl
import hashlib
import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import simplejpeg

from benchmarks.catalog_writer import write_catalog
from data_prep.catalog.files import Catalog, Frame, Item
from data_prep.common.domains import DOMAINS
from data_prep.download import coverage, ledger, shard
from data_prep.download.failures import Failure, PreflightError, UnavailableError
from data_prep.download.journal import Journal
from data_prep.download.plan import Options
from data_prep.download.rate_limit import Limits
from data_prep.download.run import download, format_status
from tests.data_prep.download.misbehaving_server import (
    BEHAVIORS,
    MAX_BYTES,
    PLACEHOLDER_NAME,
    Server,
    draw_behaviors,
    image,
)

ROOT = Path(__file__).parents[3]
LIMITS = Limits(rate=2000, concurrency=32, deadline=2.0, max_bytes=MAX_BYTES, tries=3, backoff=0.02)


def make_catalog(folder: Path, counts: dict[str, int], *, split="train", frames=3) -> Catalog:
    """A catalog with `counts` items per domain, the i-th with i modulo `frames` frames."""
    domains = {
        domain: [
            Item(i, "", (i,), tuple(Frame(t, f"{domain} {i}-{t}é.jpg") for t in range(i % frames)))
            for i in range(counts.get(domain, 0))
        ]
        for domain in DOMAINS
    }
    return write_catalog(folder, {split: domains})


def names_of(catalog: Catalog, domains=DOMAINS) -> list[str]:
    return [frame.name for domain in domains for item in catalog.items("train", domain) for frame in item.frames]


def fetch(catalog: Catalog, out: Path, server: Server, *, lines: list[str] | None = None, limits=LIMITS, **options):
    report = (lambda line: None) if lines is None else lines.append
    options = Options(**{"url_prefix": server.url, "shard_frames": 40, "limits": limits} | options)
    return asyncio.run(download(catalog, out, options, report))


def in_order(out: Path, suffix: str) -> list[Path]:
    return [path for domain in DOMAINS for path in sorted(out.glob(f"*/{domain}/*.{suffix}"))]


def read_ledgers(out: Path) -> dict[str, dict]:
    """Returns name → row."""
    return {row["name"]: row for path in in_order(out, "parquet") for row in pq.read_table(path).to_pylist()}


def read_images(out: Path) -> dict[str, bytes]:
    """Returns name → bytes from the tars alone, in their order."""
    found = {}
    for path in in_order(out, "tar"):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            if name.endswith(".json"):
                fields = json.loads(data)
                found[fields["name"]] = members[f"{fields['key']}.jpg"]
    return found


@pytest.mark.slow
def test_valid_images_arrive_unchanged_and_the_others_have_a_failure(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"page": 61, "video": 70, "live": 53}, frames=4)
    names = names_of(catalog)
    behaviors = draw_behaviors(map(quoted, names), seed=5)
    wanted = {name: BEHAVIORS[behaviors[quoted(name)]] for name in names}
    assert set(behaviors.values()) == set(BEHAVIORS)
    with Server(behaviors, default="placeholder") as server:
        summary = fetch(catalog, tmp_path / "out", server)
        requested = server.requests.total()
        assert fetch(catalog, tmp_path / "out", server) == summary
        assert server.requests.total() == requested  # the second run requests nothing

    rows = read_ledgers(tmp_path / "out")
    assert {name: row["failure"] for name, row in rows.items()} == wanted
    assert list(rows) == names  # row order
    arrived = {name: image_of(name, behaviors) for name in names if wanted[name] is None}
    assert list(read_images(tmp_path / "out").items()) == list(arrived.items())
    for path in in_order(tmp_path / "out", "parquet"):
        tar = path.with_suffix(".tar").read_bytes()
        for row in pq.read_table(path).filter(pc.field("start").is_valid()).to_pylist():
            assert tar[row["start"] : row["start"] + row["bytes"]] == arrived.pop(row["name"])
    assert not arrived
    for name, row in rows.items():
        assert row["url"] == f"{server.url}{quoted(name)}"
        if wanted[name] is None:
            assert (row["status"], row["http_status"], row["error_message"]) == ("success", 200, None)
            assert row["sha256"] == hashlib.sha256(image_of(name, behaviors)).hexdigest()
            assert (row["bytes"], row["width"], row["height"]) == (len(image_of(name, behaviors)), 32, 24)
        else:
            assert row["status"] == "failed_to_download"
            assert row["error_message"]
        # Only of some: on a busy machine a valid image may need a second try.
        tries = {"two_lengths": 1, "error_twice": 3, "error": 3, "silent": 3, "not_found": 1, "html": 1, "half": 1}
        assert row["tries"] == tries.get(behaviors[quoted(name)], row["tries"])
    assert {(row["failure"], row["http_status"]) for row in rows.values()} >= {
        ("gone", 410),
        ("gone", 404),
        ("5xx", 500),
    }
    assert "cope-jax-download" in server.headers


def test_the_summary_counts_frames_and_items(tmp_path):
    """Counted by hand: videos 0 to 4 have 0, 1, 2, 3 and 0 frames; all of 1 and 2 and one of 3 are missing."""
    catalog = make_catalog(tmp_path / "catalog", {"page": 2, "video": 5}, frames=4)
    names = names_of(catalog, ["video"])
    behaviors = dict.fromkeys(map(quoted, names), "fine")
    behaviors |= {
        quoted(names[0]): "gone",
        quoted(names[1]): "half",
        quoted(names[2]): "half",
        quoted(names[5]): "gone",
    }
    with Server(behaviors, default="fine") as server:
        summary = fetch(catalog, tmp_path / "out", server, shard_frames=3, domains=["video"], preflight=False)
        assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
        video = {
            "items": {"in": 5, "complete": 0, "partial": 1, "missing": 2, "without_frames": 2, "pending": 0},
            "frames": {"in": 6, "ok": 2, "failed": {"corrupt": 2, "gone": 2}, "pending": 0},
            "bytes": sum(len(image(quoted(names[i]))) for i in (3, 4)),
        }
        assert summary["splits"]["train"]["video"] == video
        assert summary["splits"]["train"]["page"]["frames"] == {"in": 1, "ok": 0, "failed": {}, "pending": 1}
        assert summary["catalog"] == catalog.fingerprint
        table = coverage.format_summary(summary)
        assert "33.33" in table
        assert "corrupt 2, gone 2" in table
        assert "pending 1" in table
        summary = fetch(catalog, tmp_path / "out", server, shard_frames=3)  # the other domains
        assert summary["splits"]["train"]["video"] == video
        assert summary["splits"]["train"]["page"]["frames"] == {"in": 1, "ok": 1, "failed": {}, "pending": 0}


def test_a_retry_requests_only_its_failures_and_writes_the_same_bytes_as_a_single_run(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"video": 40}, frames=4)
    names = [quoted(name) for name in names_of(catalog)]
    faults = {names[i]: fault for i, fault in enumerate(("error", "reset", "not_found", "half", "error"))}
    with Server(faults, default="fine") as server:
        summary = fetch(catalog, tmp_path / "out", server, shard_frames=20)
        assert coverage.retry_hint(summary).startswith("3 failures may be temporary: try them again with --retry=con")
        server.behaviors.clear()
        server.requests.clear()
        fetch(catalog, tmp_path / "out", server, shard_frames=20)
        assert not server.requests
        fetch(catalog, tmp_path / "out", server, shard_frames=20, retry=["5xx", "connection"])
        probes = [name for name in server.requests if name not in faults]
        assert {name for name in server.requests if name in faults} == {names[0], names[1], names[4]}
        assert len(probes) == 2  # the preflight's image and its nonexistent name
        assert read_ledgers(tmp_path / "out")[names_of(catalog)[0]]["tries"] == 4  # three and one
        fetch(catalog, tmp_path / "out", server, shard_frames=20, retry=["gone", "corrupt"])
        assert coverage.retry_hint(fetch(catalog, tmp_path / "straight", server, shard_frames=20)) == ""
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "straight")
    assert not list(tmp_path.glob("out/**/*.journal"))
    for path, straight in zip(*(in_order(tmp_path / out, "parquet") for out in ("out", "straight")), strict=True):
        starts = pq.read_table(path)["start"]
        assert starts == pq.read_table(straight)["start"]
        assert starts.null_count == 0


@pytest.mark.parametrize("retry", [[], ["gone"]])
def test_a_missing_or_truncated_tar_is_fetched_again(tmp_path, retry):
    catalog = make_catalog(tmp_path / "catalog", {"video": 40}, frames=4)
    missing = quoted(names_of(catalog)[0])
    with Server({missing: "not_found"}, default="fine") as server:
        summary = fetch(catalog, tmp_path / "out", server, shard_frames=20)
        whole = tar_bytes(tmp_path / "out")
        gone, short, good = in_order(tmp_path / "out", "tar")
        gone.unlink()
        row = ledger_rows(short)[-1]
        with short.open("r+b") as file:
            file.truncate(row["start"] + row["bytes"] - 1)
        server.requests.clear()
        lost = [quoted(row["name"]) for tar in (gone, short) for row in ledger_rows(tar)]
        assert fetch(catalog, tmp_path / "out", server, shard_frames=20, retry=retry) == summary
        assert server.requests.keys() >= set(lost)
        assert not server.requests.keys() & {quoted(row["name"]) for row in ledger_rows(good)}
    assert tar_bytes(tmp_path / "out") == whole


@pytest.mark.parametrize("damage", ["short", "empty", "another_table"])
def test_an_invalid_ledger_is_named_and_if_it_is_removed_its_shard_is_fetched_again(tmp_path, damage):
    catalog = make_catalog(tmp_path / "catalog", {"video": 40}, frames=4)
    with Server(default="fine") as server:
        summary = fetch(catalog, tmp_path / "out", server, shard_frames=20)
        whole = tar_bytes(tmp_path / "out")
        damaged = in_order(tmp_path / "out", "parquet")[1]
        lost = {quoted(row["name"]) for row in pq.read_table(damaged).to_pylist()}
        if damage == "another_table":
            pq.write_table(pa.table({"key": ["0"]}), damaged)
        else:
            damaged.write_bytes(damaged.read_bytes()[:-9] if damage == "short" else b"")
        with pytest.raises(ValueError, match=rf"{damaged.name} is not the ledger of a shard .* remove it and run"):
            fetch(catalog, tmp_path / "out", server, shard_frames=20)
        damaged.unlink()
        server.requests.clear()
        assert fetch(catalog, tmp_path / "out", server, shard_frames=20) == summary
        assert server.requests.keys() >= lost
    assert tar_bytes(tmp_path / "out") == whole


def ledger_rows(tar: Path) -> list[dict]:
    return pq.read_table(tar.with_suffix(".parquet")).to_pylist()


def test_a_placeholder_found_later_is_fetched_again(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"live": 60})
    names = [quoted(name) for name in names_of(catalog)]
    lines = []
    with Server(dict.fromkeys(names[:25], "placeholder"), default="fine") as server:
        fetch(catalog, tmp_path / "out", server, shard_frames=100, lines=lines)
        sha256 = hashlib.sha256(image(PLACEHOLDER_NAME)).hexdigest()
        assert any(f"25 of {len(names)} images have SHA-256 {sha256}" in line for line in lines)
        assert len(read_images(tmp_path / "out")) == len(names)
        server.behaviors[names[0]] = "fine"
        summary = fetch(catalog, tmp_path / "out", server, shard_frames=100, placeholders=[sha256])
    assert summary["splits"]["train"]["live"]["frames"]["failed"] == {"placeholder": 24}
    assert list(read_images(tmp_path / "out").values()) == [image(name) for name in (names[0], *names[25:])]


@pytest.mark.slow
def test_requests_slow_down_to_the_rate_that_the_server_allows(tmp_path):
    """Started at four times the allowed rate, at most 5% of the answers are 429, and everything arrives."""
    catalog = make_catalog(tmp_path / "catalog", {"video": 400})
    limits = dataclasses.replace(LIMITS, rate=320, concurrency=8, tries=6)
    with Server(default="fine", limit=80) as server:
        summary = fetch(catalog, tmp_path / "out", server, limits=limits, shard_frames=500)
    frames = summary["splits"]["train"]["video"]["frames"]
    assert frames["ok"] == frames["in"] == 399
    assert server.answers[429] <= 0.05 * server.answers.total()


def test_a_server_that_is_down_is_given_up(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"video": 600})
    names = [quoted(name) for name in names_of(catalog)]
    limits = dataclasses.replace(LIMITS, pause=0.05, pauses=3, concurrency=4, backoff=0.001, deadline=60)
    with Server(dict.fromkeys(names[50:], "error"), default="fine") as server:
        with pytest.raises(UnavailableError, match=r"10 of the latest 10 requests failed, after 3 pauses"):
            fetch(catalog, tmp_path / "out", server, limits=limits, shard_frames=700)
        # At most 50 that succeed, a window of 200 of which half fails, 3 trials of 10, and those in flight.
        assert server.requests.total() < 350
        assert not (tmp_path / "out/summary.json").exists()
        server.behaviors.clear()
        summary = fetch(catalog, tmp_path / "out", server, limits=limits, shard_frames=700)
        frames = summary["splits"]["train"]["video"]["frames"]
        assert frames["ok"] + sum(frames["failed"].values()) == len(names)
        # Images that arrived are requested once, the first one also by the preflight of each of the two runs.
        assert [server.requests[name] for name in names[:50]] == [3] + 49 * [1]


@pytest.mark.parametrize(
    ("prefix", "default", "message"),
    [
        ("http://no-such-host.invalid/", "fine", "host no-such-host.invalid of --url_prefix does not resolve"),
        (None, "not_found", r"none of \d+ images could be fetched; is --url_prefix right\?(.|\n)*gone, 404 Told So"),
        (None, "forbidden", r"none of 3 images could be fetched(.|\n)*4xx, 403 Told So"),
    ],
)
def test_the_preflight_finds_a_wrong_prefix(tmp_path, prefix, default, message):
    catalog = make_catalog(tmp_path / "catalog", {"video": 90})
    with Server(default=default) as server:
        with pytest.raises(PreflightError, match=message):
            fetch(catalog, tmp_path / "out", server, url_prefix=prefix or server.url)
        assert server.requests.total() <= 20


def test_without_the_preflight_no_image_needs_to_arrive(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"video": 9})
    with Server(default="not_found") as server:
        summary = fetch(catalog, tmp_path / "out", server, preflight=False)
    assert summary["splits"]["train"]["video"]["frames"]["failed"] == {"gone": 9}


def test_a_long_retry_after_ends_the_download(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"video": 9})
    with Server(default="busy_for_a_day") as server, pytest.raises(UnavailableError, match="no requests for 86400 s"):
        fetch(catalog, tmp_path / "out", server)


def test_proxies_of_the_environment_are_used(tmp_path, monkeypatch):
    catalog = make_catalog(tmp_path / "catalog", {"video": 9})
    with Server(default="fine") as proxy:
        host = proxy.url.removeprefix("http://").removesuffix("/images/")
        for name, value in (("http_proxy", proxy.url), ("http_proxy", host), ("ALL_PROXY", f"http://me:secret@{host}")):
            monkeypatch.setenv(name, value)
            summary = fetch(catalog, tmp_path / value, proxy, url_prefix="http://only-by-proxy.invalid/images/")
            assert summary["splits"]["train"]["video"]["frames"]["ok"] == 9
            monkeypatch.delenv(name)
        assert "\r\nProxy-Authorization: Basic bWU6c2VjcmV0" in proxy.headers
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "only-by-proxy.invalid")
        with pytest.raises(PreflightError, match="does not resolve"):
            fetch(catalog, tmp_path / "direct", proxy, url_prefix="http://only-by-proxy.invalid/images/")


def test_headers_are_sent_but_not_to_other_hosts(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"video": 2})
    (name,) = names_of(catalog)
    with Server(default="fine") as other, Server(default="fine") as server:
        server.locations[quoted(name)] = f"{other.url}x.jpg"
        fetch(catalog, tmp_path / "out", server, headers=["X-Key: a:b", "user-agent:me"], preflight=False)
        assert "X-Key: a:b\r\n" in server.headers
        assert "user-agent: me\r\n" in server.headers.lower()
        assert other.requests == {"x.jpg": 1}
        assert "X-Key" not in other.headers
        accepted = re.search(r"\r\nAccept: ([^\r]*)", other.headers)[1]
        assert accepted == (
            "image/jpeg, image/png, image/webp, image/gif, image/bmp, image/avif, image/tiff, */*;q=0.1"
        )


def catalog_of_names(folder: Path, names: list[str]) -> Catalog:
    """A catalog with one page for each image, in this order."""
    pages = [Item(i, "", (i,), (Frame(0, name),)) for i, name in enumerate(names)]
    return write_catalog(folder, {"train": {"page": pages, "video": [], "live": []}})


def test_headers_are_sent_only_to_the_host_of_the_prefix_if_names_are_urls(tmp_path):
    with Server(default="fine") as other, Server(default="fine") as server:
        for name, owner in (("own", server), ("foreign", other)):
            catalog = catalog_of_names(tmp_path / name, [f"{owner.url}{name}.jpg"])
            fetch(catalog, tmp_path / f"{name}_out", server, headers=["X-Key: secret"], preflight=False)
            assert owner.requests[f"{name}.jpg"] == 1
        assert "X-Key: secret\r\n" in server.headers
        assert "X-Key" not in other.headers


def test_a_malformed_url_is_a_failure_of_its_image_alone(tmp_path):
    malformed = ["http://host:port/a.jpg", "https:///a.jpg", "http://host:99999/a.jpg", "https://[img]/a.jpg"]
    with Server(default="fine") as server:
        catalog = catalog_of_names(tmp_path / "catalog", [*malformed, f"{server.url}Größe.jpg"])
        summary = fetch(catalog, tmp_path / "out", server)
        frames = summary["splits"]["train"]["page"]["frames"]
        assert frames == {"in": 5, "ok": 1, "failed": {"protocol": 4}, "pending": 0}
        assert server.requests["Gr%C3%B6%C3%9Fe.jpg"] == 2  # also by the preflight
        rows = read_ledgers(tmp_path / "out")
        assert rows["http://host:port/a.jpg"]["error_message"].startswith("invalid URL: ")
        server.requests.clear()
        assert fetch(catalog, tmp_path / "out", server) == summary
        assert not server.requests


def test_unsupported_images_and_protocol_faults_are_no_signs_of_an_ill_server(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"video": 600})
    limits = dataclasses.replace(LIMITS, pauses=0, concurrency=4)
    names = [quoted(name) for name in names_of(catalog)]
    behaviors = dict.fromkeys(names[50::2], "heic") | dict.fromkeys(names[51::2], "two_lengths")
    with Server(behaviors, default="fine") as server:
        summary = fetch(catalog, tmp_path / "out", server, limits=limits)
        failed = summary["splits"]["train"]["video"]["frames"]["failed"]
        assert failed == {"protocol": 275, "unsupported": 275}
        assert set(server.requests.values()) <= {1, 2}
        assert coverage.retry_hint(summary) == ""


def test_images_are_shrunk(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"page": 2})
    with Server(default="fine") as server:
        fetch(catalog, tmp_path / "out", server, image_size=12)
    ((_, row),) = read_ledgers(tmp_path / "out").items()
    (data,) = read_images(tmp_path / "out").values()
    assert simplejpeg.decode_jpeg_header(data)[:2] == (12, 16)
    assert (row["width"], row["height"], row["original_width"], row["original_height"]) == (16, 12, 32, 24)
    assert (row["sha256"], row["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))


def test_a_folder_of_another_download_is_an_error(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"page": 4})
    other = make_catalog(tmp_path / "other", {"page": 7})
    with Server(default="fine") as server:
        fetch(catalog, tmp_path / "out", server)
        with pytest.raises(ValueError, match="image_size: None there, 9 given, shard_frames: 40 there, 41 given"):
            fetch(catalog, tmp_path / "out", server, shard_frames=41, image_size=9)
        with pytest.raises(ValueError, match=r"contains a download with other options \(catalog: "):
            fetch(other, tmp_path / "out", server)
        with pytest.raises(ValueError, match=r"is not a download, because it has no settings\.json; choose another"):
            fetch(catalog, tmp_path / "catalog/train", server)


def test_a_second_process_in_the_folder_is_an_error(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"page": 4})
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/.lock").open("w") as held, Server(default="fine") as server:
        fcntl.flock(held, fcntl.LOCK_SH)  # a shared lock counts as well
        with pytest.raises(ValueError, match="another process is downloading to"):
            fetch(catalog, tmp_path / "out", server)


def test_an_unknown_split_or_domain_is_named(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"page": 4})
    with Server() as server, pytest.raises(ValueError, match="splits has 'val'; choose from train"):
        fetch(catalog, tmp_path / "out", server, splits=["val"])
    with Server() as server, pytest.raises(ValueError, match="domains has 'clip'; choose from page, video, live"):
        fetch(catalog, tmp_path / "out", server, domains=["page", "clip"])


def start(catalog: Catalog, out: Path, server: Server, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "data_prep.download", f"--catalog={catalog.folder}", f"--out={out}"]
    command += [f"--url_prefix={server.url}", "--shard_frames=50", "--rate=400", "--concurrency=8", *words]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_download_killed_at_any_time_resumes_to_the_same_bytes(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"video": 400})
    names = [quoted(name) for name in names_of(catalog)]
    faults = dict.fromkeys(names[7::90], "not_found") | dict.fromkeys(names[40::90], "half")
    with Server(faults, default="fine") as server:
        fetch(catalog, tmp_path / "straight", server, shard_frames=50)
        for requested in (1, 90, 230):
            server.requests.clear()
            process = start(catalog, tmp_path / "out", server)
            while server.requests.total() < requested and process.poll() is None:
                time.sleep(0.002)
            process.kill()
            process.communicate()
        server.requests.clear()
        last = start(catalog, tmp_path / "out", server)
        output, errors = last.communicate(timeout=120)
        assert last.returncode == 0, errors
        assert "video" in output
        assert server.requests.total() < len(names)  # the journals kept what had arrived
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "straight")
    ledgers = (read_ledgers(tmp_path / folder) for folder in ("out", "straight"))
    ours, theirs = ([(name, row["failure"], row["sha256"]) for name, row in rows.items()] for rows in ledgers)
    assert ours == theirs
    left = [path.name for path in (tmp_path / "out/train/video").iterdir() if path.suffix not in (".tar", ".parquet")]
    assert not left


@pytest.mark.parametrize("retried", [False, True])
@pytest.mark.parametrize(
    ("owner", "step"),
    [(shard.Shard, "_write_tar"), (ledger, "write_ledger"), (Journal, "remove")],
    ids=["before the tar", "between tar and ledger", "after the ledger"],
)
def test_an_error_while_a_shard_is_written_loses_nothing(tmp_path, monkeypatch, owner, step, retried):
    catalog = make_catalog(tmp_path / "catalog", {"video": 24})
    names = [quoted(name) for name in names_of(catalog)]
    with Server({names[2]: "half", names[9]: "not_found"}, default="fine") as server:
        if retried:
            fetch(catalog, tmp_path / "out", server)
            server.behaviors.clear()
        fetch(catalog, tmp_path / "straight", server)
        with monkeypatch.context() as broken:
            broken.setattr(owner, step, lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
            with pytest.raises(OSError, match="the disk is full"):
                fetch(catalog, tmp_path / "out", server, retry=["gone", "corrupt"])
        server.requests.clear()
        summary = fetch(catalog, tmp_path / "out", server)
        assert not server.requests
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "straight")
    assert summary["splits"]["train"]["video"]["frames"]["ok"] == len(names) - (0 if retried else 2)
    assert not list(tmp_path.glob("out/**/*.journal"))


def test_the_exit_code_says_why_the_download_failed(tmp_path):
    catalog = make_catalog(tmp_path / "catalog", {"video": 9})
    with Server(default="busy_for_a_day") as server:
        stopped = start(catalog, tmp_path / "stopped", server)
        absent = start(catalog, tmp_path / "absent", server, "--url_prefix=http://no-such-host.invalid/")
        wrong = start(catalog, tmp_path / "wrong", server, "--retry=slow")
        assert "no requests for 86400 s; run the same command again later" in stopped.communicate(timeout=60)[1]
        assert "does not resolve" in absent.communicate(timeout=60)[1]
        assert "download: retry has 'slow'; choose from" in wrong.communicate(timeout=60)[1]
    assert (wrong.returncode, absent.returncode, stopped.returncode) == (1, 3, 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_download_stopped_by_a_signal_keeps_what_has_arrived(tmp_path, number):
    catalog = make_catalog(tmp_path / "catalog", {"video": 400})
    with Server(default="fine") as server:
        process = start(catalog, tmp_path / "out", server, "--rate=100")
        while server.requests.total() < 30:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert "download: stopped; run the same command again to resume" in errors
        assert list((tmp_path / "out/train/video").glob("*.journal"))


def quoted(name: str) -> str:
    return name.replace(" ", "%20").replace("é", "%C3%A9")


def image_of(name: str, behaviors: dict[str, str]) -> bytes:
    moved = behaviors[quoted(name)] in ("redirect", "redirect_quoted", "redirect_bytes")
    return image(f"moved-{quoted(name)}" if moved else quoted(name))


def tar_bytes(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/*/*.tar"))}


def test_the_status_shows_failures_rate_limit_and_pause():
    failed = {Failure.GONE: 2, Failure.TIMEOUT: 1008}
    assert format_status({}, 250, 0) == "limit 250.0/s"
    assert format_status(failed, 250, 0) == "limit 250.0/s; 1,010 failed: timeout 1,008, gone 2"
    assert format_status({}, 0.5, 29.6) == "limit 0.5/s; most requests fail: pause of 30 s"
