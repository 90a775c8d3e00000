"""Which web pages may read what the router answers itself (CORS). Of their answers, preflights too, engines decide."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcacher_router.http.protocol.request_head import RequestHead

EXPOSED = (b"access-control-expose-headers", b"x-request-id, retry-after")
"""Headers that a page may read beside the few that it always may."""
ANY = "*"
_ADMIN = "/gc/"


class AllowedOrigins:
    """The origins (scheme, host and port) of pages that may read answers. "*": all pages may."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._any = ANY in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, head: RequestHead | None) -> list[tuple[bytes, bytes]]:
        """Return the headers for the router's own answer to a request; None: to one that could not be read.

        No page may read what /gc/* answers.
        """
        if not self._origins or (head is not None and head.path.startswith(_ADMIN)):
            return []
        if self._any:
            return [(b"access-control-allow-origin", b"*"), EXPOSED]
        origin = None if head is None else head.headers.get(b"origin")
        if origin not in self._origins:
            return [(b"vary", b"Origin")]
        return [(b"access-control-allow-origin", origin), (b"vary", b"Origin"), EXPOSED]
