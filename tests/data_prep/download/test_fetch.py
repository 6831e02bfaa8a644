"""The meaning of Retry-After and Location; test_run.py tests the requests."""

from typing import Any
from unittest.mock import Mock

import pytest
from yarl import URL

from data_prep.download.failures import FetchError
from data_prep.download.fetch import parse_retry_after, redirect_target

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
        ("9" * 400, 0),
        ("Wed, 21 Oct 2026 07:28:00 +9999999999999", 0),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", 0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", 0),
    ],
)
def test_retry_after_has_seconds_or_a_date(value, seconds):
    assert parse_retry_after(value, NOW) == seconds


def respond(location: str) -> Any:
    return Mock(url=URL("http://host/a/b.jpg?c"), headers={"Location": location}, status=302)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/t/a%27b.jpg?Signature=x%2Fy%3D", "http://host/t/a%27b.jpg?Signature=x%2Fy%3D"),
        ("//cdn/%7e,%2c%zz?%3F", "http://cdn/%7e,%2c%zz?%3F"),
        ("?d=%e9", "http://host/a/b.jpg?d=%e9"),
        (" e f.jpg ", "http://host/a/e%20f.jpg"),
        ("http://bücher.example/é%C3", "http://xn--bcher-kva.example/%C3%A9%C3"),
        ("/\udce9", "http://host/%E9"),  # Latin-1, as aiohttp decodes it
        ("HTTPS://[::1]:8/g", "https://[::1]:8/g"),
    ],
)
def test_locations_are_followed_as_they_are_quoted(location, target):
    assert str(redirect_target(respond(location))) == target


@pytest.mark.parametrize(
    "location", ["", "file:///a", "http://[::1", "http://a..b/", "http://xn--/", "http://a:99999/", "http://\udcff/"]
)
def test_invalid_locations_are_named(location):
    with pytest.raises(FetchError, match=r"^to '"):
        redirect_target(respond(location))
