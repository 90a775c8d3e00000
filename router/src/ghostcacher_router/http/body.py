"""A request's body that comes in pieces: gathered whole, with every bound on it. No I/O."""

from __future__ import annotations

from ghostcacher_router.http.errors import Refusal
from ghostcacher_router.http.framing import BadFraming, ChunkedBody
from ghostcacher_router.http.limits import CHUNKING_PER_BYTE, Limits


class BodyIntake:
    """Gathers one body. length: in bytes; None when it is chunked.

    received_bytes: with chunk sizes and trailers. over: the body is whole. rest: what came behind it, which is the next
    request's; behind a chunked one it is lost (`surplus`), since llhttp does not tell where it begins.
    """

    __slots__ = ("_chunks", "_length", "_limits", "content", "over", "received_bytes", "rest", "surplus")

    def __init__(self, length: int | None, limits: Limits) -> None:
        self._length = length
        self._limits = limits
        self.content = bytearray()
        self._chunks = ChunkedBody(self.content.extend, of_request=True) if length is None else None
        self.received_bytes = 0
        self.over = False
        self.surplus = False
        self.rest = b""

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
        self.content += data
        self.over = self.received_bytes == self._length

    def release(self) -> None:
        """Let go of the parser, whose callbacks refer back to it."""
        if self._chunks is not None:
            self._chunks.release()
            self._chunks = None

    def _feed_chunks(self, data: bytes) -> None:
        chunks, limits = self._chunks, self._limits
        assert chunks is not None, self
        self.received_bytes += len(data)
        try:
            chunks.feed(data)
        except BadFraming as exc:
            raise Refusal(400, f"malformed body of a request: {exc}") from None
        self.over, self.surplus = chunks.over, chunks.surplus
        size = len(self.content)
        if size > limits.body_bytes_max:
            raise body_too_large(limits.body_bytes_max)
        framing_bytes = self.received_bytes - size
        if framing_bytes > limits.chunking_bytes_max + CHUNKING_PER_BYTE * size and not self.surplus:
            raise Refusal(400, "the request's chunks are too small, or its trailers too large")


def body_too_large(bytes_max: int) -> Refusal:
    return Refusal(413, f"expected a body of at most {bytes_max} bytes, got more", code="request_too_large")
