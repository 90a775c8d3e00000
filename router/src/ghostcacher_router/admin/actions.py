"""What the admin API does to routing: explain a placement, and make routers forget and workers drop."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence

from ghostcacher_connector.core.admin_api import Flushed
from ghostcacher_connector.core.coordination.base import Flush
from ghostcacher_connector.core.coordination.flushes import FLUSHED_BLOCKS_MAX
from ghostcacher_connector.core.sections import session_tag
from ghostcacher_connector.core.types import FlushScope, PdRole, SectionType
from ghostcacher_router.admin.parameters import Explained, ExplainedRequest, FlushTarget
from ghostcacher_router.admin.worker_flushes import WorkerFlushes
from ghostcacher_router.build import Routing
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.prefix_map import PrefixMap
from ghostcacher_router.signals.sessions import session_key
from ghostcacher_router.types import Ask, Prompt, RequestShape

FLUSHED_MAX = 4096
"""The most boundaries that one flush names, 4 MiB of text: each is an entry of the stream that the routers share."""

Parse = Callable[[str, bytes, Mapping[bytes, bytes]], RequestShape | Awaitable[RequestShape]]
Steps = Callable[[str, RequestShape, bytes], Sequence[tuple[PdRole | None, RequestShape]]]
"""Returns each step of a request by its path, shape and body, and what routing goes by there: one or two."""


class AdminActions:
    """Explains and flushes, for one router. On the event loop only."""

    def __init__(
        self,
        fleet: Fleet,
        text: PrefixMap,
        routing: Routing,
        parse: Parse,
        *,
        steps: Steps,
        workers: WorkerFlushes,
        router: str,
        seed: Callable[[], int],
    ) -> None:
        """workers: has workers drop blocks. router: its name, which flushes carry. seed: returns the fleet's."""
        self._fleet, self._text, self._routing, self._parse, self._steps = fleet, text, routing, parse, steps
        self._workers, self._router, self._seed = workers, router, seed

    async def explain(self, asked: ExplainedRequest) -> Explained:
        """Return each worker's forecast for a request, the best first. Raises BadBody, NoWorker."""
        whole = await self._shape_of(asked.path, asked.body)
        *before, answers = [
            await self._routing.picker.explain(Ask("explain", "POST", asked.path, shape, {}, step=step))
            for step, shape in self._steps(asked.path, whole, asked.body)
        ]
        if (flow := self._routing.flow) is not None:
            for row in itertools.chain(answers, *before):
                row["saturated"] = row["worker"] in flow.saturated
        return Explained(answers, before[0] if before else [])

    def exclude_all_but(self, worker: str | None) -> frozenset[str]:
        """Return the workers that a request for this one is not to be placed at; none for None. Raises Refusal."""
        if worker is None:
            return frozenset()
        if worker not in self._fleet.workers:
            known = ", ".join(sorted(self._fleet.workers)) or "none"
            raise Refusal(404, f"worker {worker[:200]!r}: expected one of: {known}", code="worker_not_found")
        return frozenset(self._fleet.workers) - {worker}

    async def flush(self, target: FlushTarget) -> Flushed:
        """Have every router forget, and every worker drop, what a target names; return what workers have dropped.

        Raises BadBody, and Refusal when a request names nothing that could be meant.
        """
        if target.session is not None:
            # A session is bound per model, and a flush names none.
            self._forget(target.scope, [session_key(model, target.session) for model in (None, *self._fleet.models())])
            return await self._workers.flush(target.scope, session=session_tag(target.session, self._seed()))
        if target.scope in {FlushScope.ALL, FlushScope.TOOLS}:
            self._forget(target.scope, [b""] if target.scope is FlushScope.ALL else [])
            return await self._workers.flush(target.scope)
        if target.blocks:
            return await self._workers.flush(target.scope, target.blocks)
        prompt, chosen = await self._boundaries_of(target)
        # Before it is forgotten which blocks the text became.
        blocks = self._blocks_at(target.scope, prompt, chosen)
        self._forget(target.scope, [prompt.digests[index] for index in chosen])
        return await self._workers.flush(target.scope, blocks) if blocks else Flushed(target.scope)

    def _forget(self, scope: FlushScope, keys: Sequence[bytes]) -> None:
        """Have every router forget."""
        for key in keys:
            flush = Flush(scope=scope.value, key=key, router=self._router)
            if self._routing.sync is not None:
                self._routing.sync.publish(flush)
            else:
                self._text.flush(flush)
                self._routing.state.flush(flush)

    async def _shape_of(self, path: str, body: bytes) -> RequestShape:
        shape = self._parse(path, body, {})
        return shape if isinstance(shape, RequestShape) else await shape

    async def _boundaries_of(self, target: FlushTarget) -> tuple[Prompt, list[int]]:
        """Return the prompt that a target names, and which of its boundaries are meant. A key is one boundary."""
        if target.key is not None:
            return Prompt((1,), (target.key,), (), b"", None), [0]
        assert target.request is not None
        prompt = (await self._shape_of(target.path, target.request)).prompt
        chosen = [] if prompt is None else list(_boundaries(prompt, target.scope))
        if prompt is None or not 0 < len(chosen) <= FLUSHED_MAX:
            what = "documents" if target.scope is FlushScope.DOC else "a prompt"
            raise Refusal(400, f"request: expected {what} of 1 to {FLUSHED_MAX} boundaries, got {len(chosen)}")
        return prompt, chosen

    def _blocks_at(self, scope: FlushScope, prompt: Prompt, chosen: Collection[int]) -> list[bytes]:
        """Return the hashes of blocks that are known of these boundaries, in every namespace; of a prompt the last."""
        chosen = set(chosen)
        found: list[bytes] = []
        for namespace in {worker.namespace for worker in self._fleet.workers.values()} - {None}:
            assert namespace is not None
            known = [one.block_hash for one in self._text.known(namespace, prompt) if one.index in chosen]
            found += known[-1:] if scope is FlushScope.PREFIX else known
        return list(dict.fromkeys(found))[:FLUSHED_BLOCKS_MAX]


def _boundaries(prompt: Prompt, scope: FlushScope) -> Iterator[int]:
    """Yield which boundaries of a prompt are meant: all of them, or those in its documents."""
    if scope is FlushScope.PREFIX:
        yield from range(len(prompt.digests))
        return
    begin = 0
    for section, index in prompt.section_ends:
        if section is SectionType.DOC:
            yield from range(begin, index + 1)
        begin = index + 1
