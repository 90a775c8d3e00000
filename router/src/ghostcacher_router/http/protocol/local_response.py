"""What the router answers itself, without a worker: the request, the response and its bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from email.utils import formatdate
from typing import NamedTuple

from ghostcacher_router.http.protocol.refusal import REASONS, Refusal, error_body


class LocalRequest(NamedTuple):
    """A request that the router answers itself."""

    method: str
    path: str
    """As received, without the query."""
    query: str
    """Without its question mark."""
    headers: Mapping[bytes, bytes]
    """By lower-case name."""
    body: bytes
    """The whole body."""
    peer: str | None
    """The client's address, None when it is not known."""


class LocalResponse(NamedTuple):
    """A response of the router itself."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    """Without content-length, connection and date, which `encode` adds."""
    body: bytes

    def with_headers(self, more: Sequence[tuple[bytes, bytes]]) -> LocalResponse:
        """Return the response with further headers."""
        return self._replace(headers=(*self.headers, *more)) if more else self

    def encode(self, request_id: bytes | None, *, keep_alive: bool, no_body: bool) -> bytes:
        """Return the response as it is sent. no_body: to HEAD, which is told the length of a body but gets none."""
        lines = [b"HTTP/1.1 %d %b" % (self.status, REASONS.get(self.status, b"Unknown"))]
        lines += [b"%b: %b" % pair for pair in self.headers]
        lines += [b"date: " + formatdate(usegmt=True).encode(), b"content-length: %d" % len(self.body)]
        if request_id is not None:
            lines.append(b"x-request-id: " + request_id)
        lines.append(b"connection: keep-alive" if keep_alive else b"connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if no_body else self.body)


def error_response(path: str, refusal: Refusal) -> LocalResponse:
    """Return the response that tells the client of a refusal, in the shape of the API that `path` belongs to."""
    headers = [(b"content-type", b"application/json")]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    return LocalResponse(refusal.status, headers, error_body(path, refusal))
