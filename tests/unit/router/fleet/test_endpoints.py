"""Base URLs of workers."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.fleet.membership.endpoints import parse_endpoint
from ghostcacher_router.types import Endpoint


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", Endpoint("h", 80, False, "")),
        ("https://h/", Endpoint("h", 443, True, "")),
        ("http://H:8000/v1/", Endpoint("h", 8000, False, "")),
        ("http://[::1]:8000/a/b", Endpoint("::1", 8000, False, "/a/b")),
    ],
)
def test_url_is_understood(url: str, expected: Endpoint) -> None:
    """Default ports, a path before /v1, IPv6."""
    assert parse_endpoint(url) == expected


@pytest.mark.parametrize("url", ["", "h:80", "ftp://h", "http://h:0", "http://h:x", "http://h/?q", "http://h/\r\nx: y"])
def test_bad_url_is_refused(url: str) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match="workers: expected http"):
        parse_endpoint(url, "workers")


def test_user_and_password_are_not_shown() -> None:
    """A URL with credentials is refused without repeating them."""
    with pytest.raises(ConfigError) as caught:
        parse_endpoint("http://me:secret@h")
    assert "secret" not in str(caught.value)


def test_name_of_a_plain_engine() -> None:
    """host:port, with brackets round IPv6."""
    assert Endpoint("::1", 80, False, "").name == "[::1]:80"
