"""Log files of JSON lines, and output to a full disk."""

import json
import os
import resource
import subprocess
import sys

import pytest

from cope_jax.runs.log_files import LogFile, drop_lines_after, read_json_lines, round_values


def test_lines_of_later_steps_and_incomplete_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 2, "loss": 1}\n', '{"step": 4, "loss": 2}\n', '{"step": 6, "lo']
    path.write_text("".join(lines), encoding="utf-8")
    assert read_json_lines(path) == [json.loads(line) for line in lines[:2]]
    drop_lines_after(path, 9)
    assert path.read_text() == "".join(lines[:2])
    drop_lines_after(path, 3)
    assert path.read_text() == lines[0]
    drop_lines_after(tmp_path / "missing", 3)
    assert read_json_lines(tmp_path / "missing") == []


def test_values_are_rounded_to_six_digits():
    values = round_values({"a": 123.456789, "b": 1.23456789e-7, "c": float("nan"), "d": float("-inf")})
    assert values == {"a": 123.457, "b": 1.23457e-7, "c": None, "d": None}


def test_content_that_a_full_disk_does_not_take_is_written_later(tmp_path, full_disk, capsys):
    file = LogFile(tmp_path / "log")
    file.append(b"one\n")
    full_disk(6)
    for content in (b"two\n", b"three\n"):
        file.append(content)
        with pytest.raises(OSError, match=r"log cannot be written \(File too large\)"):
            file.sync()
        assert file.path.read_bytes() == b"one\ntw"
    full_disk(resource.RLIM_INFINITY)
    file.append(b"four\n")
    file.sync()
    assert file.path.read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert capsys.readouterr().err.count("log cannot be written (File too large); new entries wait in memory") == 1


def test_sync_brings_content_to_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    file = LogFile(tmp_path / "log")
    file.sync()
    assert synced == []
    file.append(b"one\n")
    file.sync()
    assert synced == [str(tmp_path / "log")]


PRINTER = """
import resource, signal, sys
from cope_jax.runs.log_files import ignore_full_disk_when_printing

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ignore_full_disk_when_printing()
for size in 100, 8, resource.RLIM_INFINITY:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    for stream in sys.stdout, sys.stderr:
        print(f"– {size}", file=stream, flush=True)
"""


def test_output_that_a_full_disk_does_not_take_is_dropped(tmp_path):
    paths = [tmp_path / name for name in ("out", "err")]
    with paths[0].open("wb") as output, paths[1].open("wb") as errors:
        assert subprocess.run([sys.executable, "-c", PRINTER], stdout=output, stderr=errors, timeout=60).returncode == 0
    for path in paths:
        first, _, last = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        assert first == "– 100"
        assert last.endswith("– -1\n")


@pytest.mark.parametrize("line", ["", '{"step": 2', "[{}]", '{"loss": 1.0}', "\0\0"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n', encoding="utf-8")
    for read in (read_json_lines, lambda path: drop_lines_after(path, 9)):
        with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is damaged; restore the file or remove"):
            read(path)
