"""Pipelines: content of training and evaluation batches, determinism, hosts, invalid records."""

import contextlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from cope_jax.data import pipeline
from cope_jax.data.collate import Collator
from cope_jax.data.frames import one_per_segment
from cope_jax.data.images import EvalTransform, TrainTransform
from cope_jax.data.pipeline import _TrainLoader, eval_batches, train_batches
from cope_jax.data.records import InvalidItems, open_records
from cope_jax.data.tokenizer import TextAugment, encode
from data_prep.common.domains import DOMAINS, ROPE_DOMAINS

FRAMES = {"page": 1, "video": 3, "live": 2}
NOISE = TextAugment(min_length=3)


@pytest.fixture
def train(data_dir, tokenizer):
    """Returns a function that reads the first `steps` training batches."""

    def batches(steps: int, *, frames=FRAMES, augment=NOISE, short_clips="repeat", **changes):
        settings = {"short_clips": short_clips, "augment": augment}
        collators = [
            Collator(domain, T, TrainTransform(10), tokenizer, 7, **settings, kind=ROPE_DOMAINS.get(domain, "clip"))
            for domain, T in frames.items()
        ]
        values = {"data_dir": data_dir, "split": "train", "batch_size": 6, "seed": 5, "collators": collators}
        iterator = train_batches(**values | changes)
        taken = list(islice(iterator, steps))
        iterator.close()
        return taken

    return batches


@pytest.fixture
def evaluate(data_dir, tokenizer):
    """Returns a function that reads all evaluation batches of a domain."""

    def batches(domain: str, *, T=3, short_clips="repeat", **changes) -> list:
        collator = Collator(
            domain, T, EvalTransform(8), tokenizer, 7, short_clips=short_clips, kind=ROPE_DOMAINS[domain]
        )
        values = {"data_dir": data_dir, "split": "train", "batch_size": 5, "collator": collator}
        return list(eval_batches(**values | changes))

    return batches


def leaves(batch: dict, prefix: str = "") -> dict[str, np.ndarray]:
    flat = {}
    for key, value in batch.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def assert_equal(some: list, others: list) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        one, other = leaves(one), leaves(other)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def seen(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads (row, green, frame number) from the color of plain frames u8[..., H, W, 3]."""
    color = np.rint(frames[..., 4, 4, :].astype(float) / (10, 1, 20)).astype(int)
    return color[..., 0], color[..., 1], color[..., 2]


def test_examples_show_their_product(train, content, green):
    for batch in train(5):
        assert batch["product_id"].dtype == np.int32
        for domain, T in FRAMES.items():
            arrays = batch[domain]
            row, hue, frame = seen(arrays["frames"])
            assert arrays["frames"].shape == (6, T, 10, 10, 3)
            for b, product in enumerate(batch["product_id"].tolist()):
                rows = content.products[product][domain]
                assert arrays["present"][b] == bool(rows)
                if not rows:
                    continue
                assert row[b, 0] in rows
                assert (row[b] == row[b, 0]).all()
                np.testing.assert_allclose(hue[b], green[domain], atol=1)
                _, owners, n = content.items[domain][row[b, 0]]
                assert arrays["products"][b].tolist() == [*owners, *[-1] * (4 - len(owners))]
                segment = np.arange(T) * n / T
                assert (np.floor(segment) <= frame[b]).all()
                assert (frame[b] < np.ceil(segment + n / T)).all()
                assert arrays["frame_mask"][b].all()


def test_batches_have_classes_if_class_ids_are_given(train, content):
    """The class of a product is its position in the list; products that are not in it have none."""
    ids = np.array(sorted(content.products)[1:], np.int32)
    (batch,) = train(1, class_ids=ids)
    place = {int(number): i for i, number in enumerate(ids)}
    assert batch["product_class"].tolist() == [place.get(number, -1) for number in batch["product_id"].tolist()]
    assert batch["product_class"].dtype == np.int32
    for domain in DOMAINS:
        expected = [[place.get(number, -1) for number in row] for row in batch[domain]["products"].tolist()]
        assert batch[domain]["classes"].tolist() == expected
    assert "classes" not in train(1)[0]["page"]


def test_missing_domains_and_texts(train):
    found = {b: i for i, batch in enumerate(train(3)) for b in batch["product_id"].tolist()}
    batches = train(3, augment=None)

    def example(product: int, domain: str) -> dict[str, np.ndarray]:
        batch = batches[found[product]]
        place = batch["product_id"].tolist().index(product)
        return {name: part[place] for name, part in batch[domain].items()}

    for product, domain in ((1000, "page"), (1003, "live")):
        missing = example(product, domain)
        assert not missing["present"]
        assert not missing["frames"].any()
        assert not missing["frame_mask"].any()
        assert not missing["text"].any()
        assert (missing["products"] == -1).all()
    untitled = example(1012, "page")
    assert untitled["present"]
    assert untitled["frame_mask"].all()
    assert not untitled["text"].any()
    assert example(1015, "page")["text"].any()
    # The only video of 1009 is also one of 1006: their examples are positives of each other.
    assert example(1009, "video")["products"].tolist() == [1006, 1009, -1, -1]


def test_each_epoch_has_each_product_once_in_a_new_order(train, content):
    drawn = np.concatenate([batch["product_id"] for batch in train(13)])  # 78 = 6 epochs of 13
    epochs = drawn.reshape(6, 13)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(list(content.products), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 6


def test_items_and_frames_are_drawn_again_in_each_epoch(train):
    batches = train(26, frames={"page": 1, "video": 1})
    rows, numbers = set(), set()
    for batch in batches:
        for b in np.flatnonzero(batch["product_id"] == 1006):
            rows.add(int(seen(batch["page"]["frames"])[0][b, 0]))
            numbers.add(int(seen(batch["video"]["frames"])[2][b, 0]))
    assert rows == {2, 3}  # the pages of 1006
    assert numbers == {0, 1, 2}  # the frames of its video


def test_a_batch_may_have_one_product(train):
    (batch,) = train(1, batch_size=1)
    assert batch["product_id"].shape == (1,)


@pytest.mark.parametrize("small_image", [0, 8_192])
def test_batches_depend_only_on_seed_and_step(train, monkeypatch, small_image):
    monkeypatch.setattr("cope_jax.data.pipeline.SMALL_IMAGE", small_image)
    reference = train(9, threads=0)
    assert_equal(train(9, threads=1), reference)
    assert_equal(train(9, threads=3), reference)
    assert_equal(train(4, start_step=5), reference[5:])
    other = train(9, seed=6)
    assert any((a["product_id"] != b["product_id"]).any() for a, b in zip(reference, other, strict=True))


def test_rows_of_small_images_have_one_thread(data_dir, monkeypatch):
    records = open_records(data_dir, "train")
    counts = [pipeline._threads_for_rows(records, ["page", "live"], threads).count for threads in range(4)]
    assert counts == [0, 0, 1, 1]
    monkeypatch.setattr(pipeline, "SMALL_IMAGE", len(records.items["live"][0].frames[0]))
    counts = [pipeline._threads_for_rows(records, ["page", "live"], threads).count for threads in range(4)]
    assert counts == [0, 0, 2, 3]


def test_the_number_of_batches_in_memory_does_not_grow_with_the_threads(data_dir, tokenizer, monkeypatch):
    started, make = [], _TrainLoader.__call__

    def count(self, indices):
        if self.collators is collators:  # another test's threads may end later
            started.append(indices)
        return make(self, indices)

    monkeypatch.setattr(_TrainLoader, "__call__", count)
    monkeypatch.setattr(pipeline, "SMALL_IMAGE", 0)
    collators = [Collator("page", 1, TrainTransform(10), tokenizer, 7)]
    batches = train_batches(data_dir=data_dir, split="train", batch_size=6, seed=5, collators=collators, threads=9)
    with contextlib.closing(batches):
        next(batches)
        time.sleep(0.3)
        assert len(started) <= 1 + batches.read_ahead == 3


@pytest.mark.slow  # processes start in seconds
def test_worker_processes_make_the_same_batches(train, damaged):
    """They also report invalid items, from any step on."""
    folder, _ = damaged
    wanted, found = InvalidItems(), InvalidItems()
    reference = train(27, data_dir=folder, invalid_items=wanted)[1:]
    assert_equal(train(26, data_dir=folder, invalid_items=found, worker_processes=2, start_step=1), reference)
    assert found.count == sum(batch["bad_items"].sum() for batch in reference) > 0
    assert set(found.last) <= set(wanted.last)


READ_FOREVER = """
import pickle, signal, sys, time
from multiprocessing import resource_tracker
from pathlib import Path
from cope_jax.data.pipeline import train_batches

def register_late(name, kind, register=resource_tracker.register):
    time.sleep(0.003)  # most of the time, shared memory is there and not yet registered
    register(name, kind)

resource_tracker.register = register_late

def main():
    signal.signal(signal.SIGINT, lambda *_: None)
    batches = train_batches(**pickle.loads(Path(sys.argv[1]).read_bytes()))
    try:
        for batch in batches:
            print(batch["product_id"].tolist(), flush=True)
    except ChildProcessError as error:
        print(error)
    batches.close()

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow  # processes start in seconds
@pytest.mark.parametrize("killed", ["process", "worker"])
def test_worker_processes_ignore_interrupts_and_end_with_the_process(data_dir, tokenizer, tmp_path, killed):
    collators = [Collator("page", 1, TrainTransform(100), tokenizer, 7)]
    settings = {"data_dir": data_dir, "split": "train", "batch_size": 6, "seed": 5, "collators": collators}
    (tmp_path / "settings").write_bytes(pickle.dumps(settings | {"worker_processes": 2}))
    (tmp_path / "script.py").write_text(READ_FOREVER)
    command = [sys.executable, tmp_path / "script.py", tmp_path / "settings"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    before = shared_memory()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        workers = [
            int(pid)
            for path in children
            for pid in path.read_text().split()
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
        assert all(process.stdout.readline() for _ in range(50))
        assert len(workers) == 2
        if killed == "process":
            process.kill()
        else:
            process.send_signal(signal.SIGSTOP)
            time.sleep(2)  # until both wait for it: one killed while it creates shared memory would leave it
            os.kill(workers[0], signal.SIGKILL)
            process.send_signal(signal.SIGCONT)
            assert "a process that makes batches was killed" in process.communicate(timeout=60)[0].splitlines()[-1]
            assert process.returncode == 0
    deadline = time.monotonic() + 30
    while left := [pid for pid in workers if is_running(pid)] or shared_memory() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_random_numbers_of_an_example_depend_on_the_seed(train, content):
    def copies(seed: int) -> np.ndarray:
        """Returns which of its two pages each example has, −1 without pages."""
        taken = []
        for batch in train(8, seed=seed, frames={"page": 1}):
            rows = seen(batch["page"]["frames"])[0][:, 0]
            owned = [content.products[product]["page"] for product in batch["product_id"].tolist()]
            taken += [own.index(row) if own else -1 for own, row in zip(owned, rows.tolist(), strict=True)]
        return np.array(taken)

    some, others = copies(5), copies(6)
    both = (some >= 0) & (others >= 0)
    assert 0.25 < np.mean(some[both] != others[both]) < 0.75


def test_a_late_step_starts_immediately_with_the_same_batches(train):
    far = 10**9
    assert_equal(train(1, start_step=far + 1), train(2, start_step=far)[1:])


def test_the_slices_of_hosts_are_the_global_batch(train):
    reference = train(4)
    shares = [train(4, host=host, hosts=3) for host in range(3)]
    for step, batch in enumerate(reference):
        parts = [leaves(share[step]) for share in shares]
        for name, value in leaves(batch).items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value, err_msg=name)


def test_a_run_resumed_with_other_hosts_sees_the_same_batches(train):
    """Products, rows and pixels, over restarts at the steps 7, 19 and 32 with 3, 1 and 2 hosts."""
    reference, step = train(50), 0
    for stop, hosts in ((7, 2), (19, 3), (32, 1), (50, 2)):
        shares = [train(stop - step, start_step=step, host=host, hosts=hosts) for host in range(hosts)]
        for wanted, *parts in zip(reference[step:stop], *shares, strict=True):
            ids = np.concatenate([part["product_id"] for part in parts])
            rows = np.concatenate([seen(part["page"]["frames"])[0] for part in parts])
            np.testing.assert_array_equal(ids, wanted["product_id"])
            np.testing.assert_array_equal(rows, seen(wanted["page"]["frames"])[0])
            frames = np.concatenate([part["video"]["frames"] for part in parts])
            np.testing.assert_array_equal(frames, wanted["video"]["frames"])
        step = stop


def test_an_error_in_a_worker_is_raised(train, monkeypatch):
    """Reading does not hang, and the error is not treated as an invalid item."""

    def broken(*args):
        raise RuntimeError("the tokenizer is out of order")

    monkeypatch.setattr("cope_jax.data.collate.encode", broken)
    with pytest.raises(RuntimeError, match="the tokenizer is out of order"):
        train(3)


def test_a_domain_is_the_same_without_the_others(train):
    alone = train(3, frames={"live": 2})
    assert [sorted(batch) for batch in alone] == [["bad_items", "live", "product_id"]] * 3
    assert_equal([batch["live"] for batch in alone], [batch["live"] for batch in train(3)])


@pytest.fixture
def damaged(data_dir, tmp_path):
    """Returns the records with a few changed bytes, and the row of the page that is invalid for it."""
    shutil.copytree(data_dir, tmp_path / "damaged")
    (path,) = (tmp_path / "damaged/rope/page").rglob("*-00001-of-00002")
    content = path.read_bytes()
    # In an image, which is not compressed further, and not in the index of the records.
    place = content.index(b"\xff\xd9") - 8
    path.write_bytes(content[:place] + b"rotten" + content[place + 6 :])
    pages, errors = open_records(tmp_path / "damaged", "train").items["page"], {}
    for row in range(len(pages)):
        try:
            pages[row]
        except ValueError as error:
            errors[row] = str(error)
    ((row, error),) = errors.items()
    assert error.startswith(f"record {row - len(pages) // 2} of {path} is invalid: ")
    return tmp_path / "damaged", row


def test_second_items_are_others_of_the_product_and_change_no_other_domain(train, data_dir, tokenizer, content):
    domains = {"page": "page", "video": "video", "live": "live", "page_2": "page"}
    collators = [
        Collator(domain, FRAMES[domain], TrainTransform(10), tokenizer, 7, kind=ROPE_DOMAINS[domain], entry=entry)
        for entry, domain in domains.items()
    ]
    alone, paired = train(4, short_clips="repeat", augment=None), train(4, collators=collators)
    for one, both in zip(alone, paired, strict=True):
        for domain in ("video", "live"):
            assert_equal([one[domain]], [both[domain]])
        first, second = (seen(both[entry]["frames"])[0][:, 0] for entry in ("page", "page_2"))
        for b, product in enumerate(both["product_id"].tolist()):
            rows = content.products[product]["page"]
            assert both["page"]["present"][b] == (len(rows) > 0)
            assert both["page_2"]["present"][b] == (len(rows) > 1)
            if len(rows) > 1:
                assert {first[b], second[b]} <= set(rows)
                assert first[b] != second[b]


def test_an_invalid_page_is_replaced_by_another_of_the_product(train, damaged, content):
    folder, bad = damaged
    ((product, rows),) = [(product, rows["page"]) for product, rows in content.products.items() if bad in rows["page"]]
    (other,) = set(rows) - {bad}
    invalid_items = InvalidItems()
    clean, found = train(13), train(13, data_dir=folder, invalid_items=invalid_items)
    assert_equal(found, train(13, data_dir=folder, threads=0))
    hit = 0
    for before, after in zip(clean, found, strict=True):
        for b in range(6):
            wanted = seen(before["page"]["frames"])[0][b, 0] == bad and before["product_id"][b] == product
            assert after["bad_items"][b] == wanted
            assert before["bad_items"][b] == 0
            hit += wanted
            if wanted:
                assert seen(after["page"]["frames"])[0][b, 0] == other
                assert after["page"]["present"][b]
            else:
                for name, part in leaves(before).items():
                    np.testing.assert_array_equal(leaves(after)[name][b], part[b], err_msg=name)
    assert hit
    assert invalid_items.count >= hit  # threads read ahead
    assert all("-00001-of-00002 is invalid" in error for error in invalid_items.last)


def test_an_example_without_a_valid_item_lacks_the_domain(train, content, write_broken, tmp_path):
    """Both pages of a product are not images."""
    product = list(content.products)[5]
    bad = content.products[product]["page"]
    folder, invalid_items = write_broken(tmp_path, {("page", row) for row in bad}), InvalidItems()
    for batch in train(3, data_dir=folder, invalid_items=invalid_items):
        of_product = batch["product_id"] == product
        np.testing.assert_array_equal(batch["bad_items"], 2 * of_product)
        assert not batch["page"]["present"][of_product].any()
        assert batch["video"]["present"][of_product].all()
    assert "page item" in invalid_items.last[0]
    assert "are not an image" in invalid_items.last[0]


def damage_products(data_dir, folder, every):
    """Returns the records with changed bytes in the last product or in every product."""
    shutil.copytree(data_dir, folder)
    for path in sorted((folder / "rope/product").rglob("*-of-00002")):
        content = path.read_bytes()
        places = [match.start() for match in re.finditer(b"product_id", content)]
        for place in places if every else places[-1:] if "00001" in path.name else []:
            content = content[:place] + b"rotten" + content[place + 6 :]
        path.write_bytes(content)
    return folder


def test_an_invalid_product_is_replaced_by_the_next(train, data_dir, tmp_path, content):
    """After the last product comes the first."""
    folder = damage_products(data_dir, tmp_path / "damaged", every=False)
    invalid_items, ids = InvalidItems(), list(content.products)
    clean, found = train(13), train(13, data_dir=folder, invalid_items=invalid_items)
    hit = 0
    for before, after in zip(clean, found, strict=True):
        wanted = before["product_id"] == ids[-1]
        hit += wanted.sum()
        np.testing.assert_array_equal(after["product_id"], np.where(wanted, ids[0], before["product_id"]))
        np.testing.assert_array_equal(after["bad_items"], wanted)
        for domain in DOMAINS:
            assert (seen(after[domain]["frames"])[0][wanted, 0] == 0).all()
            assert (after[domain]["present"][wanted] == bool(content.products[ids[0]][domain])).all()
            np.testing.assert_array_equal(after[domain]["frames"][~wanted], before[domain]["frames"][~wanted])
    assert hit
    message = r"record 6 of .*rope/product/.*-00001-of-00002 is invalid: "
    assert all(re.match(message, error) for error in invalid_items.last)
    with pytest.raises(ValueError, match=message):
        open_records(folder, "train").products.ids()


def test_without_any_valid_product_reading_fails(train, data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"record \d of .*rope/product/.* is invalid: "):
        train(1, data_dir=damage_products(data_dir, tmp_path / "damaged", every=True))


@pytest.mark.parametrize("batch_size", [1, 5, 12, 50])
@pytest.mark.parametrize("domain", DOMAINS)
def test_evaluation_has_each_item_once_in_row_order(evaluate, content, tokenizer, green, domain, batch_size):
    items = content.items[domain]
    batches = evaluate(domain, batch_size=batch_size, threads=batch_size % 3)
    assert len(batches) == -(-len(items) // batch_size)
    flat = {name: np.concatenate([leaves(batch)[name] for batch in batches]) for name in leaves(batches[0])}
    n, padding = len(items), len(batches) * batch_size - len(items)
    np.testing.assert_array_equal(flat["row"], [*range(n), *[-1] * padding])
    np.testing.assert_array_equal(flat["item_id"], [*(100 + 7 * r % 23 for r in range(n)), *[-1] * padding])
    assert flat["item_id"].dtype == np.int64
    np.testing.assert_array_equal(flat["frame_count"], [*(count for _, _, count in items), *[0] * padding])
    np.testing.assert_array_equal(flat[f"{domain}.present"], [True] * n + [False] * padding)
    assert not flat[f"{domain}.frames"][n:].any()
    assert not flat[f"{domain}.frame_mask"][n:].any()
    rows, hue, frame = seen(flat[f"{domain}.frames"][:n])
    np.testing.assert_array_equal(rows, np.tile(np.arange(n)[:, None], (1, 3)))
    np.testing.assert_allclose(hue, green[domain], atol=1)
    np.testing.assert_array_equal(frame, [one_per_segment(count, 3) for _, _, count in items])
    expected = encode(tokenizer, [text for text, _, _ in items], 7)
    np.testing.assert_array_equal(flat[f"{domain}.text"][:n], expected)


@pytest.mark.parametrize("T", [1, 2])
def test_pages_give_their_first_pictures(train, evaluate, album_dir, T):
    for batch in [*train(3, data_dir=album_dir, frames={"page": T}), *evaluate("page", data_dir=album_dir, T=T)]:
        page = batch["page"]
        _, _, frame = seen(page["frames"][page["present"]])
        np.testing.assert_array_equal(frame, np.tile(np.arange(T), (page["present"].sum(), 1)))


def test_evaluation_of_some_rows_equals_that_of_all(evaluate):
    (whole,) = evaluate("live", batch_size=12)
    batches = evaluate("live", batch_size=2, rows=[1, 4, 9])
    assert [batch["row"].tolist() for batch in batches] == [[1, 4], [9, -1]]
    for name, value in leaves(whole).items():
        parts = np.concatenate([leaves(batch)[name] for batch in batches])
        np.testing.assert_array_equal(parts[:3], value[[1, 4, 9]], err_msg=name)


def test_evaluation_can_skip_invalid_items(evaluate, damaged, write_broken, tmp_path):
    """An invalid record, and an invalid image."""
    for folder, bad in (damaged, (write_broken(tmp_path / "images", {("page", 3)}), 3)):
        with pytest.raises(ValueError, match=r"-00001-of-00002 is invalid|are not an image"):
            evaluate("page", data_dir=folder)
        invalid_items = InvalidItems()
        found = evaluate("page", data_dir=folder, invalid_items=invalid_items)
        assert invalid_items.count == 1
        for before, after in zip(evaluate("page"), found, strict=True):
            left = before["row"] == bad
            for name, value in leaves(before).items():
                now = leaves(after)[name]
                np.testing.assert_array_equal(now[~left], value[~left], err_msg=name)
                assert (now[left] == (-1 if name in ("row", "item_id", "page.products") else 0)).all(), name


def test_evaluation_can_mask_short_clips(evaluate, content):
    batch = evaluate("video", batch_size=12, short_clips="mask")[0]
    counts = [count for _, _, count in content.items["video"]]
    np.testing.assert_array_equal(batch["video"]["frame_mask"].sum(axis=-1), np.minimum(counts, 3))


def test_the_slices_of_hosts_are_the_global_evaluation_batches(evaluate):
    reference = evaluate("live", batch_size=8)
    shares = [evaluate("live", batch_size=8, host=host, hosts=4) for host in range(4)]
    for step, batch in enumerate(reference):
        parts = [leaves(share[step]) for share in shares]
        for name, value in leaves(batch).items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6, "hosts": 4}, "batch_size 6 is not a multiple of the number of hosts 4"),
        ({"host": 2, "hosts": 2}, "host is 2 of 2; hosts count from 0"),
        ({"frames": {"shop": 1}}, "has no domain shop; it has page, video, live"),
        ({"frames": {"page": 1, "video": 0}}, "video has 0 frames; it needs at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "test"}, "no split 'test'"),
        ({"short_clips": "loop"}, "choose one of repeat, mask"),
    ],
)
def test_invalid_arguments_are_reported(train, changes, message):
    with pytest.raises(ValueError, match=message):
        train(1, **changes)


def test_modality_dropout_is_a_pure_function_of_seed_and_step(train):
    plain, dropped = train(4), train(4, modality_dropout={"video": (0.3, 0.4)})
    assert_equal(dropped[2:], train(2, start_step=2, threads=0, modality_dropout={"video": (0.3, 0.4)}))
    lost = [(one["video"]["text"] != two["video"]["text"]).any() for one, two in zip(plain, dropped, strict=True)]
    assert any(lost)
    for one, two in zip(plain, dropped, strict=True):
        np.testing.assert_array_equal(one["video"]["frames"], two["video"]["frames"])
        for batch in (one, two):
            for key in ("text", "frame_mask"):
                del batch["video"][key]
    assert_equal(plain, dropped)
