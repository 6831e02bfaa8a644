"""What the lines of a download say."""

from data_prep.download import progress
from data_prep.download.failures import Failure


def test_a_line_tells_counts_rate_and_time_left(monkeypatch):
    now = 50.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    counts = progress.Progress(10_000)
    counts.skip(3_000)
    for failure in [None] * 1_990 + [Failure.TIMEOUT] * 8 + [Failure.GONE] * 2:
        counts.add(failure)
    now += 10
    line = counts.line(limit=250, paused=0)
    assert line == "1,990 ok, 10 failed, timeout 8, gone 2; 200.0/s (limit 250.0); 5,000 to go, about 0:00:25"
    assert counts.asked == 2_000
    now += 10
    assert counts.line(limit=0.5, paused=29.6).endswith("100.0/s (limit 0.5); most requests fail: pause of 30 s")
