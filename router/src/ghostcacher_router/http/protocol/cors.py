"""Which web pages may read what the router answers itself, and its own headers in what others answer (CORS).

Whether a page may read an engine's answer, preflights too, the engine decides. A router without engines answers
preflights itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghostcacher_router.http.protocol.request_head import RequestHead

OWN_HEADERS = (b"x-request-id", b"x-gc-worker", b"x-gc-forecast-ms", b"x-gc-cached-tokens", b"x-gc-saved-ms")
"""Headers that the router adds to an engine's answer."""
PROVIDER_ID = b"x-upstream-request-id"
"""What a provider's own id of a request is called beside the router's."""
EXPOSED = (
    b"access-control-expose-headers",
    b", ".join((*OWN_HEADERS, PROVIDER_ID, b"retry-after")),
)
"""Headers that a page may read beside the few that it always may. An engine's list and this one add up."""
ANY = "*"
PREFLIGHT_S = 600
"""For how long a browser may go by the answer to a preflight."""
_ADMIN = "/gc/"
_EXPOSING = b"\r\n%b: %b" % EXPOSED


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

    def exposing(self, head: RequestHead) -> bytes:
        """Return the header line for the answer of an engine or provider to a request, with a line end in front.

        Empty where no page asks, or one that is not allowed. It has no effect on a page that may not read that answer.
        """
        if not self._origins:
            return b""
        origin = head.headers.get(b"origin")
        return _EXPOSING if origin is not None and (self._any or origin in self._origins) else b""


def answer_to_preflight(asked: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Return the headers that let a page send what it asks for. asked: the preflight's headers, by lower-case name.

    They mean nothing to a page whose origin `AllowedOrigins` does not name beside them.
    """
    method, names = asked.get(b"access-control-request-method"), asked.get(b"access-control-request-headers")
    if method is None:
        return []
    named = [] if names is None else [(b"access-control-allow-headers", names)]
    return [(b"access-control-allow-methods", method), *named, (b"access-control-max-age", b"%d" % PREFLIGHT_S)]
