"""Passes an answer on, byte for byte, and lets a `UsageReader` read its content along."""

from __future__ import annotations

import logging

from ghostcacher_router.http.protocol.framing import BadFraming, ChunkedBody
from ghostcacher_router.http.protocol.headers import HEAD_END
from ghostcacher_router.http.protocol.response_head import ResponseHead
from ghostcacher_router.providers.costs.usage import AwsEventUsage, EventUsage, JsonUsage, UsageReader
from ghostcacher_router.upstreams.response_receiver import Sink

logger = logging.getLogger(__name__)


def reader_of(head: ResponseHead) -> UsageReader | None:
    """Return what reads an answer with this head; None where nothing is to be read, such as in packed ones."""
    lines = head.lines.lower()
    if head.no_body or b"\r\ncontent-encoding:" in lines:
        return None
    if head.events:
        return EventUsage()
    if b"\r\ncontent-type: application/vnd.amazon.eventstream" in lines:
        return AwsEventUsage()
    return JsonUsage() if b"\r\ncontent-type: application/json" in lines else None


class UsageTap:
    """A `Sink` in front of another one. chunked: whether what passes is in chunks; the reader gets it without them."""

    __slots__ = ("_chunks", "_in_head", "_reader", "_sink")

    def __init__(self, sink: Sink, reader: UsageReader, *, chunked: bool) -> None:
        self._sink = sink
        self._reader: UsageReader | None = reader
        self._chunks = ChunkedBody(reader.feed, of_request=False) if chunked else None
        self._in_head = True

    def __call__(self, data: bytes) -> None:
        """Pass on what the provider sent, the head first, alone or with what follows it."""
        self._sink(data)
        if self._in_head:
            self._in_head = False
            data = data[data.index(HEAD_END) + len(HEAD_END) :]
        if not data or self._reader is None:
            return
        try:
            if self._chunks is None:
                self._reader.feed(data)
            else:
                self._chunks.feed(data)
        except BadFraming:
            self._reader = None  # Whoever looks for the answer's end sees it, too.

    def release(self) -> None:
        """Let go of the parser, which refers back: nothing is left for the garbage collector."""
        self._reader = None
        if self._chunks is not None:
            self._chunks.release()
            self._chunks = None
