"""Reads the requests of one connection, which come in pieces: gathers heads and bodies, within bounds. No I/O."""

from __future__ import annotations

import re

from ghostcacher_router.http.protocol.framing import BadFraming, ChunkedBody
from ghostcacher_router.http.protocol.headers import HEAD_END, LENGTH_LINE, KnownHead
from ghostcacher_router.http.protocol.limits import CHUNKING_PER_BYTE, Limits
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import RequestHead, read_request_head
from ghostcacher_router.types import Body, LongBody

_CR = 13
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")
_BARE = re.compile(rb"(?<!\r)\n|\r[^\n]|\0")
"""What no head may contain: found at once, where the end of a head would never come."""
PIECE_BYTES_MIN = 16 << 10
"""Shorter pieces of a body are joined to ones of at least so many bytes: one byte takes the memory of forty."""
JOINED_BYTES_MAX = 256 << 10
"""A longer body stays in pieces."""


class RequestReader:
    """Reads requests one after the other.

    head: of the request that is being read or was read last; None before its head is whole. keep_alive: whether another
    request can follow it. pending: bytes that have come and are not read yet; whoever feeds may add to it while a
    request is answered.
    """

    __slots__ = ("_body", "_heads", "_limits", "head", "keep_alive", "pending")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._heads = HeadReader(limits)
        self._body: BodyReader | None = None
        self.pending = self._heads.pending
        self.head: RequestHead | None = None
        self.keep_alive = False

    @property
    def in_body(self) -> bool:
        """A head is whole, its body is not."""
        return self._body is not None

    @property
    def in_long_body(self) -> bool:
        """It is a body that stays in pieces, or one of which nobody knows how long it gets."""
        return self._body is not None and self._body.is_long

    @property
    def begun(self) -> bool:
        """Part of a head is here. Empty lines alone are none: they start no request."""
        return len(self.pending) > 1 or self.pending not in b"\r"

    @property
    def received_bytes(self) -> int:
        """Bytes of the body that have come, chunk sizes and trailers included."""
        return 0 if self._body is None else self._body.received_bytes

    @property
    def body_bytes(self) -> int:
        """Bytes of the body that are held while it is not whole."""
        return 0 if self._body is None else self._body.size

    def feed(self, data: bytes) -> Body | None:
        """Take in what has come, and return the body once the request is whole. Raises Refusal.

        data: not empty, unless the request is in its body.
        """
        if self._body is not None:
            return self._feed_body(self._body, data)
        found = self._heads.feed(data)
        if found is None:
            return None
        self.head, length, data = found
        self.keep_alive = self.head.keep_alive
        if length is not None:
            if length > self._limits.body_bytes_max:
                raise _body_too_large(self._limits)
            if len(data) >= length:
                if len(data) > length:
                    self.pending += data[length:]
                    data = data[:length]
                return data
        self._body = BodyReader(length, self._limits)
        return self._feed_body(self._body, data) if data else None

    def release(self) -> None:
        """Let go of everything that is held."""
        self.head = None
        self.pending.clear()
        self._drop_body()

    def _feed_body(self, body: BodyReader, data: bytes) -> Body | None:
        body.feed(data)
        if not body.over:
            return None
        self.pending += body.rest
        if body.surplus:
            self.keep_alive = False  # Where the next request begins is not known; the client has to send it again.
        whole = body.whole()
        self._drop_body()
        return whole

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.release()
            self._body = None


class HeadReader:
    """Gathers the heads of one connection. pending: what has come and is not taken yet; others may add to it.

    A head that differs from the one before in nothing but the length of the body is not parsed again: clients that keep
    their connection send the same one over and over.
    """

    __slots__ = ("_head", "_known", "_limits", "pending")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: KnownHead | None = None
        self._head: RequestHead | None = None
        """What `_known` says."""
        self.pending = bytearray()

    def feed(self, data: bytes) -> tuple[RequestHead, int | None, bytes] | None:
        """Return a head, the length of its body (None: chunked) and what came behind it; None while it is not whole.

        data: not empty. Raises Refusal.
        """
        pending = self.pending
        if not pending and self._known is not None and self._head is not None:
            found = self._known.found_in(data)
            if found is not None and found[1] <= self._limits.head_bytes_max:
                return self._head, found[0], data[found[1] :]
        if pending and pending[0] == _CR:
            data = bytes(pending) + data
            pending.clear()
        if pending:
            before = max(0, len(pending) - 3)
            pending += data
            end = pending.find(HEAD_END, before)
            if end < 0:
                self._check_begun(before)
                return None
            data = bytes(pending)
            pending.clear()
        else:
            if data[0] == _CR:
                data = data[_EMPTY_LINES.match(data).end() :]  # type: ignore[union-attr]
            end = data.find(HEAD_END)
            if end < 0:
                pending += data
                self._check_begun(0)
                return None
        end += len(HEAD_END)
        if end > self._limits.head_bytes_max:
            raise _head_too_large(self._limits)
        head, length = self._parse(data[:end])
        return head, length, data[end:]

    def _parse(self, raw: bytes) -> tuple[RequestHead, int | None]:
        head, length = read_request_head(raw, self._limits.headers_max)
        found = LENGTH_LINE.search(raw)
        if found is not None:
            self._known, self._head = KnownHead(raw[: found.start(1)], raw[found.end(1) :]), head
        return head, length

    def _check_begun(self, before: int) -> None:
        """Refuse what can become no head. before: the bytes in front of it were looked at already."""
        if _BARE.search(self.pending, before):
            raise Refusal(400, "malformed head of a request: bare CR, LF or NUL")
        if len(self.pending) > self._limits.head_bytes_max:
            raise _head_too_large(self._limits)


class BodyReader:
    """Gathers one body. length: in bytes; None when it is chunked.

    received_bytes: what has come, chunk sizes and trailers included. size: bytes of the body that are here. over: the
    body is whole. rest: what came behind it, which belongs to the next request; behind a chunked body it is lost
    (surplus), since llhttp does not tell where it begins.
    """

    __slots__ = (
        "_chunks",
        "_length",
        "_limits",
        "_pieces",
        "_short",
        "over",
        "received_bytes",
        "rest",
        "size",
        "surplus",
    )

    def __init__(self, length: int | None, limits: Limits) -> None:
        self._length = length
        self._limits = limits
        self._pieces: list[bytes] = []
        self._short = bytearray()
        self._chunks = ChunkedBody(self._add, of_request=True) if length is None else None
        self.size = 0
        self.received_bytes = 0
        self.over = False
        self.surplus = False
        self.rest = b""

    @property
    def is_long(self) -> bool:
        return self._length is None or self._length > JOINED_BYTES_MAX

    def feed(self, data: bytes) -> None:
        """Take in what comes after the head. Raises Refusal."""
        if self._length is None:
            self._feed_chunks(data)
            return
        missing = self._length - self.received_bytes
        if len(data) > missing:
            self.rest = data[missing:]
            data = data[:missing]
        self.received_bytes += len(data)
        self._add(data)
        self.over = self.received_bytes == self._length

    def whole(self) -> Body:
        """Return the body."""
        pieces = [*self._pieces, bytes(self._short)] if self._short else self._pieces
        return b"".join(pieces) if self.size <= JOINED_BYTES_MAX else LongBody(pieces)

    def release(self) -> None:
        """Let go of the parser, whose callbacks refer back to it."""
        if self._chunks is not None:
            self._chunks.release()
            self._chunks = None

    def _add(self, data: bytes) -> None:
        self.size += len(data)
        if len(data) >= PIECE_BYTES_MIN and not self._short:
            self._pieces.append(data)
            return
        self._short += data
        if len(self._short) >= PIECE_BYTES_MIN:
            self._pieces.append(bytes(self._short))
            self._short.clear()

    def _feed_chunks(self, data: bytes) -> None:
        chunks, limits = self._chunks, self._limits
        assert chunks is not None, self
        self.received_bytes += len(data)
        try:
            chunks.feed(data)
        except BadFraming as exc:
            raise Refusal(400, f"malformed body of a request: {exc}") from None
        self.over, self.surplus = chunks.over, chunks.surplus
        size = self.size
        if size > limits.body_bytes_max:
            raise _body_too_large(limits)
        framing_bytes = self.received_bytes - size
        if framing_bytes > limits.chunking_bytes_max + CHUNKING_PER_BYTE * size and not self.surplus:
            raise Refusal(400, "the request's chunks are too small, or its trailers too large")


def _body_too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"expected a body of at most {limits.body_bytes_max} bytes, got more", code="request_too_large")


def _head_too_large(limits: Limits) -> Refusal:
    return Refusal(431, f"expected a head of at most {limits.head_bytes_max} bytes, got more")
