"""What the parts of the HTTP proxy ask of one another, and of whoever counts and answers for them. No I/O."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.http.protocol.response_head import ResponseHead
from ghostcacher_router.types import Body, Endpoint, Placement, RequestShape
from ghostcacher_router.upstreams.response_receiver import Sink
from ghostcacher_router.upstreams.worker_pools import Pools

Parse = Callable[[str, Body, Mapping[bytes, bytes]], RequestShape | Awaitable[RequestShape]]
"""Path with query, body and headers by lower-case name -> what routing needs to know of them. Raises BadBody."""


class LocalEndpoints(Protocol):
    """What the router answers itself. Called on the event loop only."""

    def match(self, method: str, path: str) -> bool:
        """Say whether this request is answered here, and so never sent to a worker."""

    async def handle(self, request: LocalRequest) -> LocalResponse:
        """Return the response, within a bounded time; never raises for what a client sent."""


class ProviderPlacement(Placement, Protocol):
    """A request that leaves the fleet: a placement at a hosted provider, whose name is where a worker's would be."""

    head: bytes
    """As it is sent, with its empty line. It holds a key: not to be logged."""
    body: Body
    """As it is sent."""

    def tapped(self, sink: Sink, head: ResponseHead, *, plain: bool) -> Sink:
        """Return what takes the answer for `sink`, and reads along what it used. plain: its chunks are taken off."""


class Providers(Protocol):
    """The hosted providers. pools: connections to them."""

    pools: Pools

    def call(
        self, head: RequestHead, shape: RequestShape, body: Body
    ) -> ProviderPlacement | Awaitable[ProviderPlacement] | None:
        """Return a request as its provider gets it, at once or to be awaited; None: workers answer it.

        Raises NoWorker.
        """

    def fallback(
        self, head: RequestHead, shape: RequestShape, body: Body
    ) -> ProviderPlacement | Awaitable[ProviderPlacement | None] | None:
        """Return a request that no worker takes as a provider gets it; None: there is none for it."""

    async def close(self) -> None:
        """Close every connection; return when they are closed."""


class Exchange(Protocol):
    """A request that is being answered, by a worker (`WorkerExchange`) or by the router itself (`LocalExchange`).

    request_id: the client's own, or one that the router made. heard_bytes: of the response's body; it grows while a
    worker sends. passed_bytes: the same, and what a client sends that has switched to WebSocket.
    """

    request_id: bytes

    @property
    def heard_bytes(self) -> int: ...

    @property
    def passed_bytes(self) -> int: ...

    @property
    def waits_for_turn(self) -> bool:
        """Whether it waits for its turn: no worker is to blame that nothing moves."""

    def is_at(self, worker: str, endpoint: Endpoint) -> bool:
        """Say whether it is at a worker now."""

    def start(self) -> None:
        """Begin to answer."""

    def cancel(self) -> None:
        """The client left: end everything at once, and tell the client's connection nothing."""

    def expire(self) -> None:
        """Nothing has moved for too long: give up."""

    def check(self, now: float) -> None:
        """A tick has passed: see whether anything can come that is worth waiting for."""

    def worker_hangs(self) -> None:
        """The worker answers nobody any more: have another one answer, or end what has begun."""

    def router_stops(self) -> None:
        """The router ends, and waits no longer: give up, and tell the client."""

    def pause(self) -> None:
        """The client does not keep up: send it no more for now."""

    def resume(self) -> None:
        """Go on."""


class Client(Protocol):
    """What an exchange asks of the connection whose request it answers.

    peer: the client's address, None when it is not known. write: sends bytes, without waiting.
    """

    peer: str | None
    write: Callable[[bytes], None]

    @property
    def may_keep_alive(self) -> bool:
        """Whether the client may send another request behind this response."""

    def forwarded_for(self, before: bytes | None) -> bytes:
        """Return the value of X-Forwarded-For. before: what the client sent as such."""

    def switch(self, take: Callable[[bytes], None]) -> None:
        """Hand what the client sends to `take` from now on, what it has sent already first: it is no longer HTTP."""

    def hold(self, held: bool) -> None:
        """Read no more from a client that was switched, or read on."""

    def release_body(self) -> None:
        """The request's body is no longer held."""

    def exchange_done(self, keep: bool) -> None:
        """The response has been written as a whole. keep: another request may follow on this connection."""

    def exchange_refused(self, refusal: Refusal) -> None:
        """Have an error written instead of a response, of which nothing has been written."""

    def cut(self, last: bytes, *, reset: bool) -> None:
        """Write `last` and close: the response breaks off here, and must not look whole.

        reset: nothing but a reset of the connection tells the client so; without it the response's framing does.
        """


class Connection(Protocol):
    """What the proxy asks of each client's connection. deadline: when `expired` is to be called, by its clock."""

    __slots__ = ()
    deadline: float

    def expired(self, now: float) -> None:
        """The deadline has passed."""

    def leave_soon(self) -> None:
        """Close after the next answer, or when no request comes within `ProxyState.keep_alive_s`."""

    def drain(self) -> None:
        """Take no more requests; the one that is under way may end."""

    def router_stops(self) -> None:
        """The router ends, and waits no longer: tell the client of a request that is under way, and close."""

    def abort(self) -> None:
        """Close at once."""

    def is_at(self, worker: str, endpoint: Endpoint) -> bool:
        """Say whether its request is at a worker now."""

    def moved_after(self, when: float) -> bool:
        """Say whether a byte of a worker's answer has come after a time of the proxy's clock."""

    def worker_hangs(self, worker: str, endpoint: Endpoint) -> None:
        """A worker answers nobody any more; the request may have left it meanwhile."""


class Observed(Protocol):
    def observe(self, value: float) -> None: ...


class Counted(Protocol):
    def inc(self, *labels: str) -> None: ...


class Meter(Protocol):
    """Counts what the proxy does."""

    @property
    def latency_ms(self) -> Observed:
        """From a request's last byte read to the request written to a worker."""

    @property
    def retries(self) -> Counted:
        """Requests sent to another worker, by reason.

        It is "refused", "broke", "unreachable", "hung", "503", "429" or "error".
        """

    @property
    def handovers(self) -> Counted:
        """Prompts that one worker was to compute for another one, by what came of it: "handed" or "failed", and "late"
        for those of the first that were not used in time."""

    @property
    def turned_away(self) -> Counted:
        """Clients' connections for which there was no room, by what was short and by what was done."""

    def answered(self, path: str, status: int) -> None:
        """Count a request that has ended; 499: the client left."""
