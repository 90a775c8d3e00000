"""Where a chunked body ends, and what it holds: llhttp, fed with a made-up head and then with the body alone.

Trailers are passed over: no callback takes them, so however long they are, they take no memory.
"""

from __future__ import annotations

from collections.abc import Callable

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser

_RESPONSE_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_REQUEST_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
_ERRORS = (HttpParserError, HttpParserUpgrade)
"""The second for what comes behind a body, and asks for another protocol."""
_END_BYTES = 5
"""A body's last byte of content and its empty line."""


class BadFraming(Exception):
    """What comes is not a chunked body, or goes on after its end."""


class ChunkedEnd:
    """Finds the end of a response's chunked body, which is passed on as it is.

    `feed` must see every byte. It returns how many of these bytes belong to the body's last part: None while the body
    goes on, and then their number. Where it ends within a long piece with something behind it, it raises BadFraming:
    llhttp does not tell where that begins.
    """

    __slots__ = ("_feed", "_over", "_surplus")

    def __init__(self) -> None:
        self._over = False
        self._surplus = False
        self._feed: Callable[[bytes], object] = HttpResponseParser(self).feed_data
        self._feed(_RESPONSE_HEAD)

    def on_message_begin(self) -> None:
        self._surplus = self._over

    def on_message_complete(self) -> None:
        self._over = True

    def feed(self, data: bytes) -> int | None:
        size = len(data)
        if size < _END_BYTES:
            return self._feed_short(data)
        try:
            self._feed(data)
        except _ERRORS as exc:
            raise BadFraming(f"malformed chunk: {exc}") from None
        if not self._over:
            return None
        # llhttp takes CR and LF after the end for the beginning of a next message, and says nothing of them.
        if self._surplus or data[-4:] != b"\r\n\r\n" or data[-5] in b"\r\n":
            raise BadFraming("bytes after the end")
        return size

    def release(self) -> None:
        """Let go of the parser, which refers to this object: nothing is left for the garbage collector."""
        self._feed = _released

    def _feed_short(self, data: bytes) -> int | None:
        """Feed byte by byte: here the end is known exactly."""
        for place in range(len(data)):
            try:
                self._feed(data[place : place + 1])
            except _ERRORS as exc:
                raise BadFraming(f"malformed chunk: {exc}") from None
            if self._over:
                return place + 1
        return None


class ChunkedBody:
    """Takes the content out of a chunked body, up to `bytes_max` bytes of framing and `CHUNKING_PER_BYTE` per byte.

    over: the body has ended. surplus: something came behind it.
    """

    __slots__ = ("_feed", "_sink", "over", "surplus")

    def __init__(self, sink: Callable[[bytes], object], *, of_request: bool) -> None:
        self.over = False
        self.surplus = False
        self._sink = sink
        parser = HttpRequestParser(self) if of_request else HttpResponseParser(self)
        self._feed: Callable[[bytes], object] = parser.feed_data
        self._feed(_REQUEST_HEAD if of_request else _RESPONSE_HEAD)

    def on_message_begin(self) -> None:
        self.surplus = self.over

    def on_body(self, data: bytes) -> None:
        if not self.over:
            self._sink(data)

    def on_message_complete(self) -> None:
        self.over = True

    def feed(self, data: bytes) -> None:
        """Take in bytes of the body. Raises BadFraming, but not for what comes after its end."""
        try:
            self._feed(data)
        except _ERRORS as exc:
            if not self.over:
                raise BadFraming(f"malformed chunk: {exc}") from None
            self.surplus = True

    def release(self) -> None:
        """Let go of the parser, which refers to this object: nothing is left for the garbage collector."""
        self._feed = self._sink = _released


def _released(data: bytes) -> None:
    raise AssertionError(f"{len(data)} bytes of a body that is let go of")
