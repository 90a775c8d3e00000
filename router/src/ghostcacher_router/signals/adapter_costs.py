"""Estimates how much later a request with a LoRA adapter is answered where the adapter is not at hand.

An engine keeps as many adapters in its slots as it was started with (vLLM: `--max-loras`), the last used ones. What a
worker's slots hold is taken from its own metrics, as of its last probe, and from what this router has sent there:

    in use there, or among the last that were     nothing
    the worker lists it                           it is read from memory or disk             LOAD_MS
    the worker does not list it                   it is found, and read, first               FIND_MS
    all slots are in use for others               the same, and one of these has to end      SLOT_MS

So a worker that has the adapter is preferred until its queue is longer by that much. The base model costs nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection

from ghostcacher_router.ports import WorkerPort

LOAD_MS = 100.0
"""Adapters have some 10 to 500 MB, and are mostly in the host's memory."""

FIND_MS = 1000.0
"""A folder is searched, or a bucket is read, and nobody knows yet whether the worker finds the adapter at all."""

SLOT_MS = 1000.0
"""Most answers take seconds, and any of several may end first. As the forecasts' `KV_FULL_MS`, the value only has to
exceed what computing a prompt again elsewhere costs."""

RECENT_MAX = 64
"""Adapters that are remembered of each worker. More slots than that share no GPU."""


class _Use:
    """What this router has sent one worker: adapters alone."""

    __slots__ = ("in_flight", "recent")

    def __init__(self) -> None:
        self.in_flight: Counter[str] = Counter()
        """Requests by adapter; none of them 0."""
        self.recent: OrderedDict[str, None] = OrderedDict()
        """Adapters in order of their last use, the latest last."""


class AdapterCosts:
    """The adapters in use at each worker, by name. On the event loop only."""

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def __repr__(self) -> str:
        return f"AdapterCosts(workers={len(self._uses)})"

    def cost_ms(self, worker: WorkerPort, model: str | None) -> float:
        """Return what a request for a model waits at a worker until its adapter is at hand; 0 for a base model."""
        if model is None or not is_adapter(worker, model):
            return 0.0
        use, slots = self._uses.get(worker.name), worker.adapter_slots
        in_use = set(worker.running_adapters)
        if use is not None:
            in_use |= use.in_flight.keys()
        if model in in_use:
            return 0.0
        full = slots is not None and len(in_use) >= slots
        if use is not None and model in use.recent and not full:
            newer = list(use.recent)[list(use.recent).index(model) :]
            if slots is None or len(in_use.union(newer)) <= slots:
                return 0.0
        return (LOAD_MS if model in worker.adapters else FIND_MS) + (SLOT_MS if full else 0.0)

    def began(self, worker: str, adapter: str) -> None:
        """Note that a request with an adapter was placed at a worker: the next one finds it there."""
        use = self._uses.setdefault(worker, _Use())
        use.in_flight[adapter] += 1
        use.recent[adapter] = None
        use.recent.move_to_end(adapter)
        if len(use.recent) > RECENT_MAX:
            use.recent.popitem(last=False)

    def ended(self, worker: str, adapter: str, *, loaded: bool) -> None:
        """Note its end. loaded: whether the worker can have the adapter; False after an answer that it has not."""
        use = self._uses[worker]
        use.in_flight[adapter] -= 1
        if not use.in_flight[adapter]:
            del use.in_flight[adapter]
        if not loaded:
            use.recent.pop(adapter, None)
        if not use.in_flight and not use.recent:
            del self._uses[worker]

    def forget_worker(self, worker: str) -> None:
        """Note that a worker is DOWN: what it had in its slots is gone, and requests in flight end by themselves."""
        if (use := self._uses.get(worker)) is not None:
            use.recent.clear()

    def keep_only(self, workers: Collection[str]) -> None:
        """Forget workers that are gone and have no request in flight."""
        if len(self._uses) > len(workers):
            for name in [name for name, use in self._uses.items() if name not in workers and not use.in_flight]:
                del self._uses[name]


def is_adapter(worker: WorkerPort, model: str) -> bool:
    """Say whether a model is an adapter at a worker: it calls it one, or would have to find it first."""
    return model in worker.adapters or model not in worker.models
