"""The meaning of URLs, Retry-After and Location; test_run.py tests the requests."""

from typing import Any
from unittest.mock import Mock

import pytest
from yarl import URL

from data_prep.download.failures import FetchError
from data_prep.download.fetch import origin_of, parse_retry_after, parse_url, redirect_target

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


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (
            "http://bücher.example:81/Größe.jpg?q=é#ü",
            "http://xn--bcher-kva.example:81/Gr%C3%B6%C3%9Fe.jpg?q=%C3%A9#%C3%BC",
        ),
        ("http://me:pw@bücher.example/a.jpg", "http://me:pw@xn--bcher-kva.example/a.jpg"),
        ("https://host/%7e,%2c%zz|'a'.jpg?Signature=x%2Fy%3D", "https://host/%7e,%2c%zz|'a'.jpg?Signature=x%2Fy%3D"),
        ("http://[::1]:8/é", "http://[::1]:8/%C3%A9"),
    ],
)
def test_urls_become_ascii_and_keep_what_is_quoted(text, url):
    assert str(parse_url(text)) == url


@pytest.mark.parametrize(
    "text",
    [
        "https:///a.jpg",
        "http://host:port/a.jpg",
        "http://host:99999/a.jpg",
        "https://[img]/a.jpg",
        "https://[]@/a.jpg",
        "http://a..b/a.jpg",
        "http://xn--/a.jpg",
        f"http://{64 * 'ü'}.example/a.jpg",
        "/a.jpg",
    ],
)
def test_malformed_urls_are_errors(text):
    with pytest.raises(ValueError, match=r"host|[Pp]ort|IPv6|label"):
        parse_url(text)


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("http://shop.example/", True),
        ("HTTP://me:pw@SHOP.example:80/a?b#c", True),
        ("https://shop.example/", False),
        ("http://shop.example:8080/", False),
        ("http://cdn.shop.example/", False),
        ("http://shop.example.org/", False),
    ],
)
def test_an_origin_is_a_scheme_a_host_and_a_port(url, same):
    assert (origin_of(parse_url(url)) == origin_of(parse_url("http://shop.example/images/"))) is same


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
