"""Heads of requests: parsed, checked, and written anew for a worker. Nothing is forwarded that was not parsed.

llhttp (httptools) finds what is malformed: bare CR or LF, NUL and other controls, folded lines, white space before a
colon, lengths that conflict, a length beside an encoding. What it lets through and other servers may read otherwise
is refused here: codings other than "chunked", codings in HTTP/1.0, two hosts or none, versions other than 1.0 and 1.1.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

from ghostcacher_router.http.protocol.headers import (
    CHUNKED,
    HOP_BY_HOP,
    LENGTH_DIGITS_MAX,
    WEBSOCKET,
    listed_in,
    without_listed,
)
from ghostcacher_router.http.protocol.refusal import Refusal

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

RANK_HEADER = b"x-data-parallel-rank"
_NOT_FORWARDED = HOP_BY_HOP | {
    b"content-length",
    b"expect",
    b"host",
    b"http2-settings",
    b"trailer",
    RANK_HEADER,
    b"x-forwarded-for",
    b"x-request-id",
}
"""Headers of a client that no worker gets. Those that are not hop-by-hop are written anew, or answered here."""
_PLAIN_CONNECTION = frozenset({b"", b"keep-alive", b"close"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

_ANY_METHOD = re.compile(rb"[A-Z]+ ")
_ABSOLUTE = re.compile(rb"(?i)https?://[^/?#]*")
_TARGET = re.compile(rb"/[!$-;=?-\[\]_a-z~|%]*")
_DOTS = re.compile(rb"(?i)/(?:\.|%2e){1,2}(?:/|\Z)")
_HOST = re.compile(rb"[!-.0-;=?-\[\]_a-z~]*")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class RequestHead(NamedTuple):
    """The head of a request, checked."""

    method: str
    target: bytes
    """Path and query, in origin form."""
    path: str
    query: str
    """Without its question mark."""
    http11: bool
    """Whether the client speaks HTTP/1.1; otherwise HTTP/1.0."""
    keep_alive: bool
    """Whether the client wants to send another request on this connection."""
    headers: dict[bytes, bytes]
    """By lower-case name, without those that frame the body. Several of one name are joined by ", "."""
    forward: bytes
    """The header lines that go to a worker as they are."""
    expects_continue: bool
    """Whether the client waits for "100 Continue" before it sends the body."""
    request_id: bytes | None
    """The client's own X-Request-Id, where it is one that can be logged and forwarded."""
    websocket: bool
    """Whether the client asks to switch to WebSocket. Where a body follows, that means nothing."""


class _Fields:
    """Collects what llhttp finds in one head."""

    __slots__ = ("pairs", "url")

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name, value))


def read_request_head(raw: bytes, headers_max: int) -> tuple[RequestHead, int | None]:
    """Return the head in `raw` and the length of the body that follows, None when the body is chunked.

    raw: a whole head, ending with its empty line. Raises Refusal.
    """
    fields = _Fields()
    parser = HttpRequestParser(fields)
    try:
        parser.feed_data(raw)
    except HttpParserUpgrade:
        pass  # An upgrade may be ignored, and is, unless it is one to WebSocket; CONNECT is not forwarded either.
    except HttpParserInvalidMethodError:
        if _ANY_METHOD.match(raw):
            raise Refusal(501, "the request's method is unknown") from None
        raise Refusal(400, "malformed head of a request: expected a method") from None
    except HttpParserError as exc:
        if raw.startswith(b"PRI * HTTP/2"):
            raise Refusal(505, "HTTP/2 is not spoken here") from None
        raise Refusal(400, f"malformed head of a request: {exc}") from None
    method = parser.get_method().decode("ascii")
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise Refusal(505, f"expected HTTP/1.1 or HTTP/1.0, got HTTP/{version}")
    if len(fields.pairs) > headers_max:
        raise Refusal(431, f"expected at most {headers_max} headers, got {len(fields.pairs)}")
    return checked_head(method, fields.url, version == "1.1", fields.pairs)


def checked_head(
    method: str, url: bytes, http11: bool, pairs: list[tuple[bytes, bytes]]
) -> tuple[RequestHead, int | None]:
    """Return the head made of these parts, and the length of the body, None when it is chunked. Raises Refusal.

    Whatever decides where a request ends is checked here once more: older versions of llhttp let some of it through.
    """
    headers: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    for name, raw in pairs:
        key = name.lower()
        value = raw.rstrip(b" \t")
        if key in headers:
            # A header that must not come twice is refused below: such a list is no valid value of it.
            headers[key] += b", " + value
        else:
            headers[key] = value
        if key not in _NOT_FORWARDED and key[:5] != b"x-gc-":
            lines.append(b"%b: %b\r\n" % (name, value))
    get = headers.get
    target, path, query = _target(method, url)
    _check_host(get(b"host"), http11)
    connection = get(b"connection", b"").lower()
    websocket = False
    if connection not in _PLAIN_CONNECTION:
        listed = listed_in(connection)
        asked = http11 and method == "GET" and b"upgrade" in listed
        websocket = asked and get(b"upgrade", b"").lower() == WEBSOCKET
        lines = without_listed(lines, listed)
        connection = b"close" if b"close" in listed else b"keep-alive" if b"keep-alive" in listed else b""
    request_id = get(b"x-request-id")
    length = _body_length(headers.pop(b"content-length", None), headers.pop(b"transfer-encoding", None), http11)
    head = RequestHead(
        method,
        target,
        path,
        query,
        http11,
        connection != b"close" if http11 else connection == b"keep-alive",
        headers,
        b"".join(lines),
        http11 and b"expect" in headers and _expects_continue(headers[b"expect"]),
        request_id if request_id is not None and _REQUEST_ID.fullmatch(request_id) else None,
        websocket and length == 0,
    )
    return head, length


def _target(method: str, url: bytes) -> tuple[bytes, str, str]:
    """Return the target in origin form, its path and its query."""
    if method == "CONNECT":
        raise Refusal(501, "CONNECT is not supported")
    if not url.startswith(b"/"):
        absolute = _ABSOLUTE.match(url)
        if absolute is None:
            raise Refusal(400, "expected a path as the request's target")
        url = url[absolute.end() :]
        url = url if url.startswith(b"/") else b"/" + url
    path, _, query = url.partition(b"?")
    if _TARGET.fullmatch(url) is None or ((b"/." in path or b"/%2" in path) and _DOTS.search(path)):
        raise Refusal(400, "expected a path of visible ASCII without dot segments as the request's target")
    return url, path.decode("ascii"), query.decode("ascii")


def _check_host(host: bytes | None, http11: bool) -> None:
    if host is None:
        if http11:
            raise Refusal(400, "expected a header 'host', got none")
    elif _HOST.fullmatch(host) is None:
        raise Refusal(400, "malformed header 'host'")


def _body_length(length: bytes | None, coding: bytes | None, http11: bool) -> int | None:
    """Return the number of bytes of the body, None when it is chunked."""
    if coding is not None:
        if length is not None or not http11 or coding.lower() != CHUNKED:
            raise Refusal(400, "expected either a length or, in HTTP/1.1, 'transfer-encoding: chunked'")
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > LENGTH_DIGITS_MAX:
        raise Refusal(400, "malformed header 'content-length'")
    return int(length)


def _expects_continue(expect: bytes) -> bool:
    if expect.lower() != b"100-continue":
        raise Refusal(417, "expected '100-continue' in header 'expect'")
    return True


def rank_line(head: RequestHead, rank: int | None) -> bytes:
    """Return the header line that says which of a worker's data-parallel ranks is to answer; empty when none is named.

    rank: as the router has chosen; None when it does not know of any, and what the client named is passed on.
    """
    if rank is not None:
        return b"X-data-parallel-rank: %d\r\n" % rank
    named = head.headers.get(RANK_HEADER)
    return b"" if named is None else b"X-data-parallel-rank: %b\r\n" % named


def worker_request(head: RequestHead, prefix: bytes, host_line: bytes, own_lines: bytes, body_bytes: int) -> bytes:
    """Return the head of this request for a worker.

    prefix: the path under which the worker is served, put before the request's own. own_lines: the router's headers.
    """
    if body_bytes or head.method in _WITH_BODY:
        own_lines = b"%bContent-Length: %d\r\n" % (own_lines, body_bytes)
    elif head.websocket:
        own_lines += b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    return b"%b %b%b HTTP/1.1\r\n%b%b%b\r\n" % (
        head.method.encode(),
        prefix,
        head.target,
        host_line,
        head.forward,
        own_lines,
    )
