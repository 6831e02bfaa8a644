"""Progress on a terminal and in a log."""

import io

import pytest
from tqdm import tqdm

from data_prep.common.progress import LOG_INTERVAL, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time that tqdm sees; add to its only element."""
    now = [50.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_log_gets_a_line_per_interval_and_one_at_the_end(clock):
    log = io.StringIO()
    with Progress(total=100, desc="train page", unit="items", file=log) as progress:
        for _ in range(5):
            clock[0] += LOG_INTERVAL / 2
            progress.update(10)
    assert log.getvalue().splitlines() == [
        "train page: 20/100 items, 2.00 items/s, 00:40 left",
        "train page: 40/100 items, 2.00 items/s, 00:30 left",
        "train page: 50/100 items, 2.00 items/s, 00:25 left",
    ]


def test_a_log_gets_no_line_twice(clock):
    log = io.StringIO()
    with Progress(range(3), desc="reading", unit="files", file=log) as progress:
        for _ in progress:
            clock[0] += LOG_INTERVAL
    assert [line.split(",")[0] for line in log.getvalue().splitlines()] == [f"reading: {n}/3 files" for n in (1, 2, 3)]


def test_a_stalled_log_shows_changes_of_the_postfix(clock):
    log = io.StringIO()
    progress = Progress(total=None, desc="reading", unit="files", file=log)
    for text in ("pause of 20 s", "pause of 10 s", "pause of 10 s"):
        clock[0] += LOG_INTERVAL
        progress.set_postfix_str(text, refresh=False)
        progress.update(0)
    progress.close()
    assert log.getvalue().splitlines() == [
        f"reading: 0/? files, ? files/s, ? left, {text}" for text in ("pause of 20 s", "pause of 10 s")
    ]


def test_skipped_work_counts_for_the_total_and_not_for_the_rate(clock):
    log = io.StringIO()
    with Progress(total=1000, desc="reading", unit="files", file=log) as progress:
        progress.skip(700)
        clock[0] += LOG_INTERVAL
        progress.update(100)
        progress.skip(100)
    assert log.getvalue().splitlines() == [
        "reading: 800/1000 files, 10.00 files/s, 00:20 left",
        "reading: 900/1000 files, 10.00 files/s, 00:10 left",
    ]
    Progress(total=1, unit="files", disable=True).skip(1)


def test_messages_leave_a_log_alone(clock, capsys):
    progress = Progress(total=2, desc="reading", unit="files")  # standard error, captured: not a terminal
    clock[0] += LOG_INTERVAL
    progress.update()
    Progress.write("note")
    progress.close()
    assert capsys.readouterr() == ("note\n", "reading: 1/2 files, 0.10 files/s, 00:10 left\n")


def test_a_terminal_gets_a_bar_that_is_redrawn():
    terminal = Terminal()
    with Progress(range(3), desc="reading", unit="files", file=terminal, mininterval=0) as progress:
        list(progress)
    first, *_, last = terminal.getvalue().strip().split("\r")
    assert first.startswith("reading:   0%|")
    assert last.startswith("reading: 100%|")
    assert "3/3 [00:00<00:00" in last
    assert terminal.getvalue().count("\n") == 1


def test_no_thread_watches_the_bar():
    Progress(total=1, unit="files", file=io.StringIO()).close()
    assert tqdm.monitor is Progress.monitor is None
