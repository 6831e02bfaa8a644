"""The meaning of Retry-After; test_run.py tests the requests."""

import pytest

from data_prep.download.fetch import parse_retry_after

NOW = 1445412480.0  # 21 Oct 2015 07:28:00 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("120", 120),
        (" 0 ", 0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 08:28:30 +0100", 3630 - 3600),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),  # in the past
        ("soon", 0),
        ("-5", 0),
        ("1.5", 0),
        ("", 0),
    ],
)
def test_retry_after_has_seconds_or_a_date(value, seconds):
    assert parse_retry_after(value, NOW) == seconds
