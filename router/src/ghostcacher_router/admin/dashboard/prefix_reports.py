"""What many prompts begin with, and which workers hold it, as the index says.

The index is asked once in `KEPT_S` at most, however many people look, and never about more than `CHECKS_MAX` pairs of
prefix and worker: in a large fleet only about those workers that this router takes for holders, and some others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ghostcacher_connector.core.dashboard_api import Prefix, Prefixes
from ghostcacher_connector.core.errors import IndexUnavailable
from ghostcacher_connector.core.index.base import BlockIndex, WorkerRef
from ghostcacher_router.fleet.worker import Worker
from ghostcacher_router.placement.context import RoutingState
from ghostcacher_router.ports import KnownPort, Offload
from ghostcacher_router.prefix_map import PrefixMap
from ghostcacher_router.signals.hot_prefixes import HotPrefix
from ghostcacher_router.types import Prompt

logger = logging.getLogger(__name__)

PER_TYPE = 10
HOLDERS_SHOWN = 16
NAMESPACES_MAX = 8
"""Groups of workers that share blocks with each other; there is mostly one for each model."""
CHECKS_MAX = 1024
"""Pairs of prefix and worker in one look-up: they hold Redis for about five milliseconds."""
KEPT_S = 4.0
"""For so long an answer is given again."""


class _Found(NamedTuple):
    """A prefix as blocks of one namespace."""

    namespace: str
    known: KnownPort


class PrefixReports:
    """Reports the hottest prefixes of one router. On the event loop only."""

    def __init__(
        self,
        state: RoutingState,
        text: PrefixMap,
        workers: Mapping[str, Worker],
        index: BlockIndex | None,
        *,
        offload: Offload,
        clock: Callable[[], float],
    ) -> None:
        """index: None without Redis; then holders are guessed. offload: runs calls of the index."""
        self._hot, self._locations, self._history = state.hot, state.locations, state.history
        self._text, self._workers, self._index = text, workers, index
        self._offload, self._clock = offload, clock
        self._asking = asyncio.Lock()
        self._answer, self._answered_at = Prefixes(), float("-inf")

    async def report(self) -> Prefixes:
        """Return the hottest prefixes, as of a moment ago."""
        async with self._asking:
            if self._clock() - self._answered_at > KEPT_S:
                self._answer, self._answered_at = await self._ask(), self._clock()
            return self._answer

    async def _ask(self) -> Prefixes:
        self._hot.settle()
        hottest, refs = self._hot.hottest(PER_TYPE), self._refs()
        found = {one.digest: blocks for one in hottest if (blocks := self._blocks_of(one, refs)) is not None}
        held: dict[bytes, Sequence[str]] = {}
        for namespace, candidates in refs.items():
            asked = {digest: blocks for digest, blocks in found.items() if blocks.namespace == namespace}
            held |= await self._holders(namespace, asked, candidates)
        now = self._clock()
        prefixes = [self._prefix(one, found.get(one.digest), held.get(one.digest), now) for one in hottest]
        return Prefixes(tuple(prefixes), self._hot.seen)

    def _refs(self) -> dict[str, list[WorkerRef]]:
        """Return the workers of the largest namespaces."""
        refs: dict[str, list[WorkerRef]] = {}
        for worker in self._workers.values():
            if worker.ref is not None:
                refs.setdefault(worker.ref.namespace, []).append(worker.ref)
        largest = sorted(refs, key=lambda namespace: len(refs[namespace]), reverse=True)[:NAMESPACES_MAX]
        return {namespace: refs[namespace] for namespace in largest}

    def _blocks_of(self, one: HotPrefix, namespaces: Mapping[str, object]) -> _Found | None:
        """Return the blocks that a prefix became where it was computed; None when no worker has told."""
        prompt = Prompt((one.size,), (one.digest,), (), b"", None)
        for namespace in namespaces:
            if (known := self._text.deepest(namespace, prompt)) is not None:
                return _Found(namespace, known)
        return None

    async def _holders(
        self, namespace: str, asked: Mapping[bytes, _Found], candidates: Sequence[WorkerRef]
    ) -> dict[bytes, Sequence[str]]:
        """Return who holds each prefix, by its digest: as the index says, or, while it is away, as is believed."""
        if not asked:
            return {}
        believed = {
            digest: set(self._locations.believed(namespace, blocks.known.block_hash))
            for digest, blocks in asked.items()
        }
        likely = set().union(*believed.values())
        some = sorted(candidates, key=lambda ref: ref.worker not in likely)[: max(1, CHECKS_MAX // len(asked))]
        chains = [[blocks.known.block_hash] for blocks in asked.values()]
        index = self._index
        try:
            if index is None:
                raise IndexUnavailable("there is none")
            depths = await self._offload(lambda: index.depths(some, chains))
        except IndexUnavailable as exc:
            logger.debug("holders of prefixes: %s", exc)
            return {digest: sorted(names) for digest, names in believed.items()}
        return {
            digest: [ref.worker for ref, depth in zip(some, held, strict=True) if depth]
            for digest, held in zip(asked, depths, strict=True)
        }

    def _prefix(self, one: HotPrefix, found: _Found | None, held: Sequence[str] | None, now: float) -> Prefix:
        if held is None:
            held = self._history.holders(one.digest, now)
        blocks = None if found is None else found.known.block_count
        tokens = None if found is None else self._block_tokens(found.namespace)
        return Prefix(
            key=one.digest.hex(),
            section=one.section.name.lower(),
            bytes=one.size,
            uses=round(one.heat(now), 2),
            last_s=round(max(0.0, now - one.last_at), 1),
            blocks=blocks,
            tokens=None if blocks is None or tokens is None else blocks * tokens,
            holders=tuple(sorted(held)[:HOLDERS_SHOWN]),
            holder_count=len(held),
        )

    def _block_tokens(self, namespace: str) -> int | None:
        found = (worker.block_tokens for worker in self._workers.values() if worker.namespace == namespace)
        return next(found, None)
