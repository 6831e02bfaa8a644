"""A journal keeps all complete entries, no matter where its file was cut."""

import hashlib

import pytest

from data_prep.download.journal import Journal
from data_prep.download.ledger import Row

BODIES = {4: b"first\nbody", 0: b"{\x00}", 2: b"the third"}


def row(position: int, body: bytes | None, tries: int = 1) -> Row:
    common = {"key": f"{position}", "url": "u", "name": f"é{position}", "tries": tries}
    if body is None:
        return Row(**common, status="failed_to_download", failure="gone")
    return Row(**common, status="success", bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def write(path) -> list[int]:
    """Writes three images and a failure; returns the sizes of the file after each."""
    journal, sizes = Journal(path, [0, 2, 3, 4]), []
    for position in (4, 3, 0, 2):
        body = BODIES.get(position)
        journal.append(position, row(position, body), body or b"")
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def test_complete_answers_are_kept_wherever_the_file_ends(tmp_path):
    path = tmp_path / "journal"
    sizes = write(path)
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        journal = Journal(path, [0, 2, 3, 4])
        kept = [position for position, size in zip((4, 3, 0, 2), sizes, strict=True) if size <= end]
        assert list(journal.rows) == kept
        journal.append(9, row(9, b"later"), b"later")
        journal.close()
        again = Journal(path, [])
        assert again.requested == {0, 2, 3, 4}
        assert list(again.rows) == [*kept, 9]
        assert all(again.body(position) == BODIES[position] for position in kept if position != 3)
        assert again.body(9) == b"later"
        again.close()


def test_the_journal_ends_before_bytes_that_did_not_reach_the_disk(tmp_path):
    """As after a power failure, the file has its length but zeros in the middle."""
    path = tmp_path / "journal"
    write(path)
    damaged = path.read_bytes().replace(b"{\x00}", b"\x00\x00\x00")
    path.write_bytes(damaged)
    journal = Journal(path, [])
    assert list(journal.rows) == [4, 3]
    journal.close()


def test_a_journal_whose_start_did_not_reach_the_disk_starts_over(tmp_path):
    path = tmp_path / "journal"
    write(path)
    path.write_bytes(b"\0\0\0" + path.read_bytes()[3:])
    journal = Journal(path, [1])
    assert (journal.requested, journal.rows) == ({1}, {})
    journal.append(1, row(1, b"new"), b"new")
    journal.close()
    again = Journal(path, [])
    assert (again.requested, list(again.rows), again.body(1)) == ({1}, [1], b"new")
    again.close()


def test_a_retry_adds_to_the_requested_positions(tmp_path):
    write(tmp_path / "journal")
    journal = Journal(tmp_path / "journal", [7])
    assert journal.requested == {0, 2, 3, 4, 7}
    journal.remove()
    assert not (tmp_path / "journal").exists()


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "00000.journal", [0])
    with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as patch:
        patch.setattr(journal, "_file", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/00000\.journal'"):
            journal.append(0, row(0, b"x"), b"x")
    journal.close()
