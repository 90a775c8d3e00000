"""What the admin API does to routing: explain a placement, and make the routers forget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from ghostcacher_connector.core.coordination.base import Flush
from ghostcacher_connector.core.types import FlushScope, SectionType
from ghostcacher_router.admin.parameters import ExplainedRequest, FlushTarget
from ghostcacher_router.build import Routing
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.prefix_map import PrefixMap
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.types import Ask, Prompt, RequestShape

FLUSHED_MAX = 4096
"""The most boundaries that one flush names, 4 MiB of text: each is an entry of the stream that the routers share."""

Parse = Callable[[str, bytes, Mapping[bytes, bytes]], RequestShape | Awaitable[RequestShape]]


class AdminActions:
    """Explains and flushes, for one router. On the event loop only. router: its name, which flushes carry."""

    def __init__(self, fleet: Fleet, text: PrefixMap, routing: Routing, parse: Parse, *, router: str) -> None:
        self._fleet, self._text, self._routing, self._parse, self._router = fleet, text, routing, parse, router

    async def explain(self, asked: ExplainedRequest) -> list[dict[str, object]]:
        """Return each worker's forecast for a request, the best first. Raises BadBody, NoWorker."""
        shape = await self._shape_of(asked.path, asked.body)
        return await self._routing.picker.explain(Ask("explain", "POST", asked.path, shape, {}))

    async def flush(self, target: FlushTarget) -> None:
        """Have every router forget. Raises BadBody, and Refusal when a request names nothing that could be meant."""
        for key in await self._keys(target):
            flush = Flush(scope=target.scope.value, key=key, router=self._router)
            if self._routing.sync is not None:
                self._routing.sync.publish(flush)
            else:
                self._text.flush(flush)
                self._routing.state.flush(flush)

    async def _shape_of(self, path: str, body: bytes) -> RequestShape:
        shape = self._parse(path, body, {})
        return shape if isinstance(shape, RequestShape) else await shape

    async def _keys(self, target: FlushTarget) -> list[bytes]:
        if target.scope is FlushScope.ALL:
            return [b""]
        if target.session is not None:
            # A session is bound per model, and a flush names none.
            return [session_key(model, target.session) for model in (None, *self._fleet.models())]
        if target.key is not None:
            return [target.key]
        assert target.request is not None
        prompt = (await self._shape_of(target.path, target.request)).prompt
        keys = [] if prompt is None else list(_boundaries(prompt, target.scope))
        if not 0 < len(keys) <= FLUSHED_MAX:
            what = "documents" if target.scope is FlushScope.DOC else "a prompt"
            raise Refusal(400, f"request: expected {what} of 1 to {FLUSHED_MAX} boundaries, got {len(keys)}")
        return keys


def _boundaries(prompt: Prompt, scope: FlushScope) -> Iterator[bytes]:
    """Yield the digests of a prompt's boundaries: all of them, or those in its documents."""
    if scope is FlushScope.PREFIX:
        yield from prompt.digests
        return
    begin = 0
    for section, index in prompt.section_ends:
        if section is SectionType.DOC:
            yield from prompt.digests[begin : index + 1]
        begin = index + 1
