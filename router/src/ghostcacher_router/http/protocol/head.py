"""Heads of requests: read, checked, and built anew for a worker. Nothing of a head is forwarded that was not parsed.

llhttp (httptools) finds what is malformed: bare CR or LF, NUL and other controls, folded lines, white space before a
colon, lengths that conflict, a length beside an encoding. What it lets through and other servers may read otherwise
is refused here: codings other than "chunked", codings in HTTP/1.0, two hosts or none, versions other than 1.0 and 1.1.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

from ghostcacher_router.http.errors import Refusal

HEAD_END = b"\r\n\r\n"
LENGTH_LINE = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,18})(?=\r\n)")
"""As nearly everybody writes it."""
CHUNKED = b"chunked"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_FORWARDED = HOP_BY_HOP | {
    b"content-length",
    b"expect",
    b"host",
    b"http2-settings",
    b"trailer",
    b"x-forwarded-for",
    b"x-request-id",
}
"""Those that are not hop-by-hop are written anew, or answered here."""
_PLAIN_CONNECTION = frozenset({b"", b"keep-alive", b"close"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

_ANY_METHOD = re.compile(rb"[A-Z]+ ")
_ABSOLUTE = re.compile(rb"(?i)https?://[^/?#]*")
_TARGET = re.compile(rb"/[!$-;=?-\[\]_a-z~|%]*")
_DOTS = re.compile(rb"(?i)/(?:\.|%2e){1,2}(?:/|\Z)")
_HOST = re.compile(rb"[!-.0-;=?-\[\]_a-z~]*")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_LENGTH_DIGITS_MAX = 18


class RequestHead(NamedTuple):
    """A request's head, checked.

    target: path and query, in origin form. headers: lower-case names, without those of framing; several of one name are
    joined by ", ". forward: lines that go to a worker as they are. request_id: the client's own, when it is sane.
    """

    method: str
    target: bytes
    path: str
    query: str
    http11: bool
    keep_alive: bool
    headers: dict[bytes, bytes]
    forward: bytes
    expects_continue: bool
    request_id: bytes | None


class _Reader:
    """What llhttp finds in one head."""

    __slots__ = ("pairs", "url")

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name, value))


def read_request_head(raw: bytes, headers_max: int) -> tuple[RequestHead, int | None]:
    """Return the head in `raw`, which ends with its empty line, and the length of the body (None: chunked).

    Raises Refusal.
    """
    reader = _Reader()
    parser = HttpRequestParser(reader)
    try:
        parser.feed_data(raw)
    except HttpParserUpgrade:
        pass  # An upgrade may be ignored, and is; CONNECT is not forwarded either.
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
    if len(reader.pairs) > headers_max:
        raise Refusal(431, f"expected at most {headers_max} headers, got {len(reader.pairs)}")
    return checked_head(method, reader.url, version == "1.1", reader.pairs)


def checked_head(
    method: str, url: bytes, http11: bool, pairs: list[tuple[bytes, bytes]]
) -> tuple[RequestHead, int | None]:
    """Return the head made of these parts, and the length of the body. Raises Refusal.

    What decides where a request ends is checked here once more: older versions of llhttp let some of it through.
    """
    headers: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    for name, raw in pairs:
        key = name.lower()
        value = raw.rstrip(b" \t")
        if key in headers:
            # Of what must not come twice, such a list is no value: it is refused below.
            headers[key] += b", " + value
        else:
            headers[key] = value
        if key not in _NOT_FORWARDED and key[:5] != b"x-gc-":
            lines.append(b"%b: %b\r\n" % (name, value))
    get = headers.get
    target, path, query = _target(method, url)
    _check_host(get(b"host"), http11)
    connection = get(b"connection", b"").lower()
    if connection not in _PLAIN_CONNECTION:
        lines, connection = _without_listed(lines, connection)
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
    )
    return head, length


def _target(method: str, url: bytes) -> tuple[bytes, str, str]:
    """Return target in origin form, path and query."""
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
    """Return the bytes of the body, None when it is chunked."""
    if coding is not None:
        if length is not None or not http11 or coding.lower() != CHUNKED:
            raise Refusal(400, "expected either a length or, in HTTP/1.1, 'transfer-encoding: chunked'")
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
        raise Refusal(400, "malformed header 'content-length'")
    return int(length)


def _expects_continue(expect: bytes) -> bool:
    if expect.lower() != b"100-continue":
        raise Refusal(417, "expected '100-continue' in header 'expect'")
    return True


def _without_listed(lines: list[bytes], connection: bytes) -> tuple[list[bytes], bytes]:
    """Return the lines less those that the header Connection names, and what it says of keeping alive."""
    listed = {token.strip(b" \t") for token in connection.split(b",")}
    kept = [line for line in lines if line[: line.index(b":")].lower() not in listed]
    return kept, b"close" if b"close" in listed else b"keep-alive" if b"keep-alive" in listed else b""


def worker_request(head: RequestHead, prefix: bytes, host_line: bytes, tail: bytes, body_bytes: int) -> bytes:
    """Return the head that a worker gets. prefix: of the path; tail: lines of the router's own."""
    if body_bytes or head.method in _WITH_BODY:
        tail = b"%bContent-Length: %d\r\n" % (tail, body_bytes)
    return b"%b %b%b HTTP/1.1\r\n%b%b%b\r\n" % (
        head.method.encode(),
        prefix,
        head.target,
        host_line,
        head.forward,
        tail,
    )
