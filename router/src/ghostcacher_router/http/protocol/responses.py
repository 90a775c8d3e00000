"""Heads of answers: a worker's, read, checked and built anew for a client; and the router's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import formatdate
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from ghostcacher_router.http.errors import REASONS, Refusal, error_body
from ghostcacher_router.http.protocol.head import CHUNKED, HOP_BY_HOP, LENGTH_LINE

_FRAMING = frozenset({b"connection", b"content-length", b"transfer-encoding"})
_DROPPED = HOP_BY_HOP | {b"x-request-id"}
HEADS_KNOWN_MAX = 64
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t -~\x80-\xff]*)?")
_INTERIM = range(100, 200)
_NO_BODY = frozenset({204, 304})
_LENGTH_DIGITS_MAX = 18


class BadAnswer(Exception):
    """What a worker answered is not HTTP/1.1 that can be passed on."""


class AnswerHead(NamedTuple):
    """A worker's head, checked.

    lines: status line and headers for the client, without the empty line and the body's length. chunked: the body is,
    and so a line says. no_body: there is none, whatever the length. keep_alive: of the worker's connection, should the
    answer end before it.
    """

    status: int
    lines: bytes
    chunked: bool
    no_body: bool
    keep_alive: bool


class _Reader:
    """What llhttp finds in one head."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name, value))


class AnswerHeads:
    """Reads the heads of one worker's answers; bounded memory.

    A head that differs from an earlier one in nothing but the length of the body is not parsed again: within a second
    (they have a date), a worker sends the same ones over and over.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, AnswerHead] = {}

    def read(self, raw: bytes) -> tuple[AnswerHead, int | None]:
        """Return the head in `raw`, which ends with its empty line, and the length it names. Raises BadAnswer."""
        found = LENGTH_LINE.search(raw)
        if found is None:
            lines, length = raw, None
        else:
            start, end = found.span()
            lines, length = raw[:start] + raw[end:], int(found[1])
        known = self._known.get(lines)
        if known is not None and (length is None or not known.chunked):
            # As good as parsed: the same lines, and at most one length in between.
            return known, length
        head, length = read_answer_head(raw)
        if len(self._known) >= HEADS_KNOWN_MAX:
            self._known.clear()
        if (length is None) is (found is None):
            self._known[lines] = head
        return head, length


def read_answer_head(raw: bytes) -> tuple[AnswerHead, int | None]:
    """Return the head in `raw`, which ends with its empty line, and the length it names. Raises BadAnswer."""
    reader = _Reader()
    status_line = raw[: raw.index(b"\r\n")]
    found = _STATUS_LINE.fullmatch(status_line)
    if found is None:
        raise BadAnswer("malformed status line")
    try:
        HttpResponseParser(reader).feed_data(raw)
    except HttpParserUpgrade:
        pass  # 101 is refused by whoever reads the status; with any other it means nothing.
    except HttpParserError as exc:
        raise BadAnswer(f"malformed head: {exc}") from None
    status, http11 = int(found[2]), found[1] == b"1"
    lines, named = _forwarded(b"HTTP/1.1" + status_line[8:], reader.pairs)
    connection = named.get(b"connection", b"").lower()
    keep_alive = connection != b"close" and (http11 or connection == b"keep-alive")
    if b"," in connection:
        keep_alive, lines = False, _without_listed(lines, connection)
    length, chunked = _framing(named.get(b"content-length"), named.get(b"transfer-encoding"), http11)
    no_body = status in _NO_BODY or status in _INTERIM
    if chunked and not no_body:
        lines.append(b"transfer-encoding: chunked")
    return AnswerHead(status, b"\r\n".join(lines), chunked, no_body, keep_alive), length


def _forwarded(status_line: bytes, pairs: Sequence[tuple[bytes, bytes]]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Return the lines for the client, and the headers that say how the answer ends."""
    lines, named = [status_line], dict[bytes, bytes]()
    for name, value in pairs:
        key = name.lower()
        if key in _FRAMING:
            named[key] = named[key] + b"," + value if key in named else value.rstrip(b" \t")
        elif key not in _DROPPED and key[:5] != b"x-gc-":
            lines.append(b"%b: %b" % (name, value))
    return lines, named


def _without_listed(lines: list[bytes], connection: bytes) -> list[bytes]:
    listed = {token.strip(b" \t") for token in connection.split(b",")}
    return lines[:1] + [line for line in lines[1:] if line[: line.index(b":")].lower() not in listed]


def without_chunked(lines: bytes) -> bytes:
    """Return a head's lines for a client that takes no chunks."""
    return lines.removesuffix(b"\r\ntransfer-encoding: chunked")


def _framing(length: bytes | None, coding: bytes | None, http11: bool) -> tuple[int | None, bool]:
    """Return the body's length, and whether it is chunked. Neither: it ends with the connection."""
    if coding is not None:
        if length is not None or not http11 or coding.lower() != CHUNKED:
            raise BadAnswer(f"expected 'chunked' alone as its transfer-encoding, got {coding!r}")
        return None, True
    if length is None:
        return None, False
    if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
        raise BadAnswer(f"malformed content-length {length!r}")
    return int(length), False


def own_answer(
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    *,
    request_id: bytes | None,
    keep_alive: bool,
    no_body: bool,
) -> bytes:
    """Return an answer of the router itself. no_body: to HEAD, which has the length of a body but none."""
    lines = [b"HTTP/1.1 %d %b" % (status, REASONS.get(status, b"Unknown"))]
    lines += [b"%b: %b" % pair for pair in headers]
    lines += [b"date: " + formatdate(usegmt=True).encode(), b"content-length: %d" % len(body)]
    if request_id is not None:
        lines.append(b"x-request-id: " + request_id)
    lines.append(b"connection: keep-alive" if keep_alive else b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if no_body else body)


def own_error(path: str, refusal: Refusal, *, request_id: bytes | None, keep_alive: bool, no_body: bool) -> bytes:
    """Return an error of the router itself."""
    headers = [(b"content-type", b"application/json")]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    body = error_body(path, refusal)
    return own_answer(refusal.status, headers, body, request_id=request_id, keep_alive=keep_alive, no_body=no_body)
