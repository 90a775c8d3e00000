"""The port through which a connection to a worker hands on a response. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ghostcacher_router.http.protocol.response_head import ResponseHead

Sink = Callable[[bytes], None]
"""Takes the bytes of a response for the client, in order."""


class ResponseReceiver(Protocol):
    """Who gets a response. After `response_end`, `response_lost` or `response_bad` it hears no more of it.

    no_body: the request was HEAD, so no body follows whatever the head says. plain: takes no chunks, so that a chunked
    body is taken out of its framing. switching: the request asked for WebSocket, so the response may switch to it; what
    comes then is its body until the connection is closed.
    """

    no_body: bool
    plain: bool
    switching: bool

    def response_head(self, head: ResponseHead, length: int | None, *, whole: bool) -> tuple[bytes, Sink]:
        """Return the head for the client, and what takes it and then the body.

        length: the Content-Length that the worker named, if any. whole: the end of the response follows at once.
        """

    def response_first_byte(self) -> None:
        """The first byte of the body has come."""

    def response_begins(self) -> None:
        """The head is about to be given to the sink; until then the response can still become an error."""

    def response_end(self, *, clean: bool) -> None:
        """The response is whole. clean: nothing came behind it."""

    def response_lost(self, error: str, *, began: bool) -> None:
        """The connection broke. began: bytes of a response had come. Never follows `response_end`."""

    def response_bad(self, error: str) -> None:
        """What came is no response that can be passed on."""
