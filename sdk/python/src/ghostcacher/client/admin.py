"""The router's own API: what it knows of its fleet, and what can be asked of it.

`admin_types` and `dashboard_types` have what it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

from ghostcacher.client import arguments
from ghostcacher.client.admin_types import (
    Drain,
    Explanation,
    Flushed,
    FlushScope,
    Prefetched,
    Stats,
    Status,
    Worker,
    Workers,
)
from ghostcacher.client.calls import Call, PromptRequest, admin_call
from ghostcacher.client.dashboard_types import History, Links, Locks, Prefixes
from ghostcacher.client.errors import ArgumentError
from ghostcacher.client.options import Options
from ghostcacher.client.replies import admin_answer_of
from ghostcacher.client.transport import AsyncTransport, Transport

Kind = TypeVar("Kind")


class AdminCall(NamedTuple, Generic[Kind]):
    """A request to the router, and what it answers."""

    call: Call
    """What is sent."""
    answer: type[Kind]
    """What comes back."""


class AdminCalls:
    """From arguments to requests. Raises ArgumentError."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def status(self) -> AdminCall[Status]:
        return AdminCall(admin_call(self._options, "GET", "/gc/status"), Status)

    def stats(self) -> AdminCall[Stats]:
        return AdminCall(admin_call(self._options, "GET", "/gc/stats"), Stats)

    def workers(self) -> AdminCall[Workers]:
        return AdminCall(admin_call(self._options, "GET", "/gc/workers"), Workers)

    def history(self, after: float | None) -> AdminCall[History]:
        query = "" if after is None else f"?after={arguments.seconds('after', after)!r}"
        return AdminCall(admin_call(self._options, "GET", f"/gc/history{query}"), History)

    def prefixes(self) -> AdminCall[Prefixes]:
        return AdminCall(admin_call(self._options, "GET", "/gc/prefixes"), Prefixes)

    def locks(self) -> AdminCall[Locks]:
        return AdminCall(admin_call(self._options, "GET", "/gc/locks"), Locks)

    def links(self, worker: str | None) -> AdminCall[Links]:
        query = "" if worker is None else f"?worker={quote(arguments.text('worker', worker), safe='')}"
        return AdminCall(admin_call(self._options, "GET", f"/gc/links{query}"), Links)

    def explain(self, request: PromptRequest) -> AdminCall[Explanation]:
        path, body = _checked(request)
        return AdminCall(
            admin_call(self._options, "POST", f"/gc/explain?path={quote(path, safe='')}", body), Explanation
        )

    def prefetch(self, request: PromptRequest, worker: str | None) -> AdminCall[Prefetched]:
        path, body = _checked(request)
        more = {"path": path} | ({} if worker is None else {"worker": arguments.text("worker", worker)})
        return AdminCall(admin_call(self._options, "POST", "/gc/prefetch", {**body, **more}), Prefetched)

    def drain(self, worker: str, *, back: bool) -> AdminCall[Drain]:
        path = f"/gc/workers/{quote(arguments.text('worker', worker), safe='')}/drain"
        return AdminCall(admin_call(self._options, "DELETE" if back else "POST", path), Drain)

    def flush(
        self,
        scope: FlushScope | str,
        session: str | None,
        request: PromptRequest | None,
        key: str | None,
        blocks: Sequence[str] | None,
    ) -> AdminCall[Flushed]:
        try:
            body: dict[str, Any] = {"scope": FlushScope(scope).value}
        except ValueError:
            expected = ", ".join(each.value for each in FlushScope)
            raise ArgumentError("scope", f"expected one of {expected}, got {arguments.shown(scope)}") from None
        if session is not None:
            body["session"] = session
        if request is not None:
            body["path"], body["request"] = _checked(request)
        if key is not None:
            body["key"] = key
        if blocks is not None:
            body["blocks"] = list(blocks)
        return AdminCall(admin_call(self._options, "POST", "/gc/flush", body), Flushed)


def _checked(request: object) -> PromptRequest:
    if not isinstance(request, PromptRequest):
        raise ArgumentError("request", f"expected what prepare() returns, got {arguments.shown(request)}")
    return request


class Admin:
    """Asks the router about its fleet, and orders it about. Raises GhostCacherError, as of calls."""

    def __init__(self, options: Options, transport: Transport) -> None:
        self._calls, self._transport = AdminCalls(options), transport

    def status(self) -> Status:
        """Return how the router and its fleet are."""
        return self._ask(self._calls.status())

    def stats(self) -> Stats:
        """Return the router's counters since its start."""
        return self._ask(self._calls.stats())

    def workers(self) -> tuple[Worker, ...]:
        """Return every worker that the router knows."""
        return self._ask(self._calls.workers()).workers

    def history(self, *, after: float | None = None) -> History:
        """Return how the router fared in the intervals that ended after a time, in seconds since 1970; None: all."""
        return self._ask(self._calls.history(after))

    def prefixes(self) -> Prefixes:
        """Return what many prompts begin with, and who holds it."""
        return self._ask(self._calls.prefixes())

    def locks(self) -> Locks:
        """Return the ghost locks that the router knows of."""
        return self._ask(self._calls.locks())

    def links(self, *, worker: str | None = None) -> Links:
        """Return how fast workers, or one of them, read their peers' caches."""
        return self._ask(self._calls.links(worker))

    def explain(self, request: PromptRequest) -> Explanation:
        """Return each worker's forecast for a request, the best first. Nothing is sent to engines."""
        return self._ask(self._calls.explain(request))

    def prefetch(self, request: PromptRequest, *, worker: str | None = None) -> Prefetched:
        """Have a worker compute or load a prompt before its traffic comes: this one, or where it would be placed."""
        return self._ask(self._calls.prefetch(request, worker))

    def drain(self, worker: str) -> Drain:
        """Give a worker no new requests."""
        return self._ask(self._calls.drain(worker, back=False))

    def undrain(self, worker: str) -> Drain:
        """Take a drain back."""
        return self._ask(self._calls.drain(worker, back=True))

    def flush(
        self,
        scope: FlushScope | str,
        *,
        session: str | None = None,
        request: PromptRequest | None = None,
        key: str | None = None,
        blocks: Sequence[str] | None = None,
    ) -> Flushed:
        """Have routers forget and workers drop what is named; see `FlushRequest`."""
        return self._ask(self._calls.flush(scope, session, request, key, blocks))

    def _ask(self, asked: AdminCall[Kind]) -> Kind:
        return admin_answer_of(asked.answer, self._transport.whole(asked.call)[0])


class AsyncAdmin:
    """Asks the router about its fleet, and orders it about. Raises GhostCacherError, as of calls."""

    def __init__(self, options: Options, transport: AsyncTransport) -> None:
        self._calls, self._transport = AdminCalls(options), transport

    async def status(self) -> Status:
        """Return how the router and its fleet are."""
        return await self._ask(self._calls.status())

    async def stats(self) -> Stats:
        """Return the router's counters since its start."""
        return await self._ask(self._calls.stats())

    async def workers(self) -> tuple[Worker, ...]:
        """Return every worker that the router knows."""
        return (await self._ask(self._calls.workers())).workers

    async def history(self, *, after: float | None = None) -> History:
        """Return how the router fared in the intervals that ended after a time, in seconds since 1970; None: all."""
        return await self._ask(self._calls.history(after))

    async def prefixes(self) -> Prefixes:
        """Return what many prompts begin with, and who holds it."""
        return await self._ask(self._calls.prefixes())

    async def locks(self) -> Locks:
        """Return the ghost locks that the router knows of."""
        return await self._ask(self._calls.locks())

    async def links(self, *, worker: str | None = None) -> Links:
        """Return how fast workers, or one of them, read their peers' caches."""
        return await self._ask(self._calls.links(worker))

    async def explain(self, request: PromptRequest) -> Explanation:
        """Return each worker's forecast for a request, the best first. Nothing is sent to engines."""
        return await self._ask(self._calls.explain(request))

    async def prefetch(self, request: PromptRequest, *, worker: str | None = None) -> Prefetched:
        """Have a worker compute or load a prompt before its traffic comes: this one, or where it would be placed."""
        return await self._ask(self._calls.prefetch(request, worker))

    async def drain(self, worker: str) -> Drain:
        """Give a worker no new requests."""
        return await self._ask(self._calls.drain(worker, back=False))

    async def undrain(self, worker: str) -> Drain:
        """Take a drain back."""
        return await self._ask(self._calls.drain(worker, back=True))

    async def flush(
        self,
        scope: FlushScope | str,
        *,
        session: str | None = None,
        request: PromptRequest | None = None,
        key: str | None = None,
        blocks: Sequence[str] | None = None,
    ) -> Flushed:
        """Have routers forget and workers drop what is named; see `FlushRequest`."""
        return await self._ask(self._calls.flush(scope, session, request, key, blocks))

    async def _ask(self, asked: AdminCall[Kind]) -> Kind:
        return admin_answer_of(asked.answer, (await self._transport.whole(asked.call))[0])
