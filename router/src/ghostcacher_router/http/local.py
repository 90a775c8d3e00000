"""The port between the front and what the router answers itself (admin/): no worker takes part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class LocalRequest(NamedTuple):
    """A request that the router answers itself. path: as received, without its query. query: without the "?".

    headers: lower-case names. body: whole. peer: the client's address, None when it is not known.
    """

    method: str
    path: str
    query: str
    headers: Mapping[bytes, bytes]
    body: bytes
    peer: str | None


class LocalResponse(NamedTuple):
    """An answer. headers: without content-length, connection and date, which are the front's."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


class LocalEndpoints(Protocol):
    """What the router answers itself. Called on the event loop only."""

    def match(self, method: str, path: str) -> bool:
        """Say whether this request is answered here, and so never sent to a worker."""

    async def handle(self, request: LocalRequest) -> LocalResponse:
        """Return the answer, within a bounded time; never raises for what a client sent."""
