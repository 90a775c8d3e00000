"""Heads of a worker's responses: parsed, checked, and written anew for a client.

llhttp (httptools) finds what is malformed. Codings other than "chunked", a length beside a coding and two lengths are
refused here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from ghostcacher_router.http.protocol.headers import (
    CHUNKED,
    HOP_BY_HOP,
    LENGTH_DIGITS_MAX,
    LENGTH_LINE,
    WEBSOCKET,
    KnownHead,
    listed_in,
    without_listed,
)

INTERIM = range(100, 200)
"""Statuses after which the response proper is still to come."""
SWITCHING = 101
NO_CONTENT = 204
_NO_BODY = frozenset({NO_CONTENT, 304})
_FRAMING = frozenset({b"connection", b"content-length", b"transfer-encoding", b"upgrade"})
REQUEST_ID = b"x-request-id"
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t -~\x80-\xff]*)?")
_EVENT_STREAM = b"text/event-stream"
_CHUNKED_LINE = b"transfer-encoding: chunked"
HEADS_KNOWN_MAX = 64


class BadResponse(Exception):
    """What a worker sent is no HTTP/1.1 response that can be passed on."""


class ResponseHead(NamedTuple):
    """The head of a worker's response, checked."""

    status: int
    lines: bytes
    """Status line and headers for the client, without the empty line and without the body's length."""
    chunked: bool
    """Whether the body is chunked; then a line says so."""
    no_body: bool
    """Whether there is no body, whatever length the head names."""
    keep_alive: bool
    """Whether the worker keeps its connection open, should the response end before it."""
    events: bool
    """Whether the body is a stream of server-sent events that is not encoded otherwise."""
    websocket: bool
    """Whether all that follows is WebSocket, in both directions."""
    request_id: bytes | None = None
    """The server's own X-Request-Id, which is not among the lines: the router's is."""


class _Fields:
    """Collects what llhttp finds in one head."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name, value))


class ResponseHeads:
    """Parses the heads of one worker's responses and remembers some of them.

    A head that differs from an earlier one in nothing but the length of the body is not parsed again: within a second
    (heads have a date) a worker sends the same ones over and over. Memory is bounded by `HEADS_KNOWN_MAX`.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, ResponseHead] = {}
        self._last: tuple[KnownHead, ResponseHead] | None = None
        """The last head that was looked for, of a response proper."""

    def last_in(self, data: bytes, bytes_max: int) -> tuple[ResponseHead, int | None, int] | None:
        """Return what `parse` does, and where the head ends; None unless `data` begins with the same one as last.

        The head is that of a response proper, and has at most `bytes_max` bytes.
        """
        if self._last is None:
            return None
        known, head = self._last
        found = known.found_in(data)
        return None if found is None or found[1] > bytes_max else (head, *found)

    def parse(self, raw: bytes) -> tuple[ResponseHead, int | None]:
        """Return what `read_response_head` does."""
        found = LENGTH_LINE.search(raw)
        if found is None:
            lines, length = raw, None
        else:
            start, end = found.span()
            lines, length = raw[:start] + raw[end:], int(found[1])
        known = self._known.get(lines)
        if known is not None and (length is None or not known.chunked):
            # As good as parsed: the same lines, and at most one length in between.
            self._note_last(known, raw, found)
            return known, length
        head, length = read_response_head(raw)
        if len(self._known) >= HEADS_KNOWN_MAX:
            self._known.clear()
        if (length is None) is (found is None) and not head.websocket:
            self._known[lines] = head
            self._note_last(head, raw, found)
        return head, length

    def _note_last(self, head: ResponseHead, raw: bytes, found: re.Match[bytes] | None) -> None:
        if head.status not in INTERIM:
            around = KnownHead(raw, None) if found is None else KnownHead(raw[: found.start(1)], raw[found.end(1) :])
            self._last = around, head


def read_response_head(raw: bytes) -> tuple[ResponseHead, int | None]:
    """Return the head in `raw` and the Content-Length that it names, None without one.

    raw: a whole head, ending with its empty line. Raises BadResponse.
    """
    fields = _Fields()
    status_line = raw[: raw.index(b"\r\n")]
    found = _STATUS_LINE.fullmatch(status_line)
    if found is None:
        raise BadResponse("malformed status line")
    try:
        HttpResponseParser(fields).feed_data(raw)
    except HttpParserUpgrade:
        pass  # 101 is refused by whoever reads the status, unless it was asked for; with any other it means nothing.
    except HttpParserError as exc:
        raise BadResponse(f"malformed head: {exc}") from None
    status, http11 = int(found[2]), found[1] == b"1"
    lines, framing = _forwarded(fields.pairs)
    connection = framing.get(b"connection", b"").lower()
    keep_alive = connection != b"close" and (http11 or connection == b"keep-alive")
    if b"," in connection:
        keep_alive, lines = False, without_listed(lines, listed_in(connection))
    length, chunked = _body_framing(framing.get(b"content-length"), framing.get(b"transfer-encoding"), http11)
    websocket = status == SWITCHING and b"upgrade" in listed_in(connection) and http11
    websocket = websocket and framing.get(b"upgrade", b"").lower() == WEBSOCKET and length is None and not chunked
    no_body = status in _NO_BODY or (status in INTERIM and not websocket)
    if chunked and not no_body:
        lines.append(_CHUNKED_LINE)
    lines.insert(0, b"HTTP/1.1" + status_line[8:])
    events = _is_event_stream(fields.pairs)
    request_id = framing.get(REQUEST_ID)
    head = ResponseHead(status, b"\r\n".join(lines), chunked, no_body, keep_alive, events, websocket, request_id)
    return head, length


def _forwarded(pairs: Sequence[tuple[bytes, bytes]]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Return the header lines for the client; the headers that say how the response ends, and the request's id."""
    lines, framing = list[bytes](), dict[bytes, bytes]()
    for name, value in pairs:
        key = name.lower()
        if key == REQUEST_ID:
            framing[key] = value
        elif key in _FRAMING:
            framing[key] = framing[key] + b"," + value if key in framing else value.rstrip(b" \t")
        elif key not in HOP_BY_HOP and key[:5] != b"x-gc-":
            lines.append(b"%b: %b" % (name, value))
    return lines, framing


def _is_event_stream(pairs: Sequence[tuple[bytes, bytes]]) -> bool:
    headers = {name.lower(): value for name, value in pairs}
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return media_type == _EVENT_STREAM and b"content-encoding" not in headers


def _body_framing(length: bytes | None, coding: bytes | None, http11: bool) -> tuple[int | None, bool]:
    """Return the body's length, and whether it is chunked. Neither: it ends with the connection."""
    if coding is not None:
        if length is not None or not http11 or coding.lower() != CHUNKED:
            raise BadResponse(f"expected 'chunked' alone as its transfer-encoding, got {coding!r}")
        return None, True
    if length is None:
        return None, False
    if not length.isdigit() or len(length) > LENGTH_DIGITS_MAX:
        raise BadResponse(f"malformed content-length {length!r}")
    return int(length), False


def client_head(head: ResponseHead, length: int | None, own_lines: bytes, *, http11: bool, keep_alive: bool) -> bytes:
    """Return the head of a worker's response for a client.

    length: the Content-Length that the worker named, if any. own_lines: the router's headers, each with a line end in
    front. http11: whether the client speaks it; to HTTP/1.0 no body goes in chunks. keep_alive: whether the client may
    send another request behind this response.
    """
    lines = head.lines
    if head.chunked:
        if not http11:
            lines = lines.removesuffix(b"\r\n" + _CHUNKED_LINE)
    elif length is not None and head.status != NO_CONTENT:
        own_lines += b"\r\ncontent-length: %d" % length
    if head.websocket:
        own_lines += b"\r\nconnection: Upgrade\r\nupgrade: websocket"
    elif not keep_alive:
        own_lines += b"\r\nconnection: close"
    elif not http11:
        own_lines += b"\r\nconnection: keep-alive"
    return b"%b%b\r\n\r\n" % (lines, own_lines)
