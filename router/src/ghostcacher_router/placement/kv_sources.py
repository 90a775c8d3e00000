"""Finds a worker from which another one could pull a prefix, where both have vLLM's own tier and not our connector.

Our connector finds its sources by the index. vLLM's P2P tier has none: it pulls from the engine that a request names.
Which one that is only who has sent the prefix there knows.
"""

from __future__ import annotations

from collections.abc import Callable

from ghostcacher_router.placement.candidates import ANSWERS
from ghostcacher_router.placement.placed_request import PlacedRequest
from ghostcacher_router.ports import WorkersPort
from ghostcacher_router.signals.sent_caches import CacheUse
from ghostcacher_router.signals.sent_history import SentHistory
from ghostcacher_router.types import KvSource, Placement

MORE_BYTES_MIN = 4096
"""So much more of the prompt the source must have. Less is computed sooner than it is asked for."""


class KvSources:
    """Knows who has which prefix, of workers without our connector. On the event loop only."""

    def __init__(self, history: SentHistory, fleet: WorkersPort, clock: Callable[[], float], *, port: int) -> None:
        """port: at which each engine's P2P tier listens."""
        self._history, self._fleet, self._clock, self._port = history, fleet, clock, port

    def __repr__(self) -> str:
        return f"KvSources(port={self._port})"

    def __call__(self, placement: Placement) -> KvSource | None:
        """Return the worker that has computed more of a request's prompt than its own has; None when there is none."""
        if not isinstance(placement, PlacedRequest) or placement.ref is not None:
            return None
        prompt, use = placement.ask.shape.prompt, placement.cache_use
        if prompt is None or not isinstance(use, CacheUse):
            return None
        found = self._history.computed_elsewhere(prompt, placement.worker, self._clock())
        if found is None or prompt.ends[found[0]] - use.held_bytes < MORE_BYTES_MIN:
            return None
        source = self._fleet.workers.get(found[1].worker)
        if source is None or source.ref is not None or source.state not in ANSWERS:
            return None
        return None if source.data_parallel_rank is not None else KvSource(source.endpoint.host, self._port)
