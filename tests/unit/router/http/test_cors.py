"""Which pages may read what the router answers itself."""

from __future__ import annotations

import pytest

from ghostcacher_router.http.protocol.cors import AllowedOrigins
from ghostcacher_router.http.protocol.request_head import read_request_head

APP, OTHER = b"https://app.example", b"https://other.example"


def headers(allowed: tuple[str, ...], path: bytes, origin: bytes | None) -> dict[bytes, bytes]:
    line = b"" if origin is None else b"Origin: %b\r\n" % origin
    head, _ = read_request_head(b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path, line), 128)
    return dict(AllowedOrigins(allowed).headers(head))


@pytest.mark.parametrize(
    ("allowed", "origin", "told"),
    [
        ((), APP, None),
        (("*",), APP, b"*"),
        (("*",), None, b"*"),
        (("https://other.example", "https://app.example"), APP, APP),
        (("https://app.example",), OTHER, None),
        (("https://app.example",), b"https://app.example.evil", None),
        (("https://app.example",), b"null", None),
        (("https://app.example",), None, None),
        (("null",), b"null", b"null"),
    ],
)
def test_page_may_read_what_its_origin_is_allowed(
    allowed: tuple[str, ...], origin: bytes | None, told: bytes | None
) -> None:
    """Its own origin is told back, and never another one's; who caches the answer learns that it depends on that."""
    found = headers(allowed, b"/v1/models", origin)
    assert found.get(b"access-control-allow-origin") == told
    assert (b"vary" in found) is (bool(allowed) and allowed != ("*",))
    assert headers(allowed, b"/gc/status", origin) == {}


def test_answer_to_what_could_not_be_read_is_for_all_pages_or_none() -> None:
    """Its origin is not known."""
    assert dict(AllowedOrigins(["*"]).headers(None))[b"access-control-allow-origin"] == b"*"
    assert dict(AllowedOrigins(["https://app.example"]).headers(None)) == {b"vary": b"Origin"}
