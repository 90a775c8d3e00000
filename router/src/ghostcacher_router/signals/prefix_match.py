"""What is known about one prompt at one moment: who holds how much of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ghostcacher_router.ports import FleetPort, KnownPort, TextPort, WorkerPort
from ghostcacher_router.signals.prefix_locations import Held, PrefixLocations
from ghostcacher_router.signals.sent_history import Remembered, SentHistory
from ghostcacher_router.signals.ttft_forecast import WorkerMatch
from ghostcacher_router.types import Prompt, WorkerState

BRIDGE_S = 5.0
"""What was sent is believed to be held beyond what the index says for so long: until it has been reported."""

BYTES_PER_TOKEN_GUESS = 4
"""Of plain engines, which report nothing: English prose under most vocabularies."""


_new = tuple.__new__
"""What a NamedTuple's own constructor calls, which takes twice as long. Called for each worker of each request."""


class LookupNeeded(NamedTuple):
    """The index must be asked first about what a prompt has in this namespace."""

    namespace: str
    prompt: Prompt


class PrefixMatch(NamedTuple):
    """Who holds how much of a prompt. tokens: of the whole prompt, an estimate unless it came as tokens.

    local: tokens that each worker holds, by name; pullable: the most that one of a namespace has for its peers.
    warm: by namespace, index of the deepest boundary that a worker has computed; -1, or absent, when none has.
    pulls: whether workers find what their peers have: Redis answers.
    """

    prompt: Prompt
    tokens: int
    local: dict[str, int]
    pullable: dict[str | None, int]
    warm: dict[str, int]
    pulls: bool

    def reach(self, worker: WorkerPort) -> WorkerMatch:
        """Return how much of the prompt a worker can have."""
        return _new(WorkerMatch, (self.local.get(worker.name, 0), self.pullable.get(worker.namespace, 0), 0.0))

    def warm_in(self, namespace: str) -> int:
        """Return the index of the deepest boundary that a worker of a namespace has computed, -1 when none has."""
        return self.warm.get(namespace, -1)

    def tokens_at(self, index: int) -> int:
        """Return the estimated tokens before a boundary."""
        return self.tokens * self.prompt.ends[index] // max(1, self.prompt.size)


class _Gathered:
    """What a look has found so far, in tokens. pullable: the most in each namespace. known: index of the deepest
    boundary whose blocks are known, by namespace; warm: of the deepest one that is computed.
    """

    __slots__ = ("known", "local", "pullable", "pulls", "warm")

    def __init__(self, pulls: bool) -> None:
        self.pulls = pulls
        self.known: dict[str, int] = {}
        self.local: dict[str, int] = {}
        self.pullable: dict[str | None, int] = {}
        self.warm: dict[str, int] = {}


class PrefixMatcher:
    """Puts together what the learned text, the index and this router's own memory say."""

    def __init__(self, fleet: FleetPort, text: TextPort, locations: PrefixLocations, sent_history: SentHistory) -> None:
        self._fleet, self._text, self._locations, self._sent_history = fleet, text, locations, sent_history

    def look(
        self,
        prompt: Prompt,
        namespaces: Iterable[str | None],
        now: float,
        *,
        pulls: bool,
        ask: bool,
        newer_than: float | None = None,
    ) -> PrefixMatch | LookupNeeded:
        """Return what is known; LookupNeeded when the index has to be asked first, and (ask) that is wanted.

        newer_than: loop clock, s; what the index said before does not do.
        """
        tokens = prompt.tokens or 0
        got = _Gathered(pulls)
        for namespace in namespaces:
            if namespace is None:
                continue
            tokens = tokens or self._text.tokens_of(namespace, prompt)
            deepest = self._text.deepest(namespace, prompt)
            if deepest is not None:
                held = self._locations.get(namespace, deepest, newer_than=newer_than, old=not ask)
                if held is None:
                    return LookupNeeded(namespace, prompt)
                got.known[namespace] = deepest.index
                got.warm[namespace] = self._boundary_at(namespace, prompt, deepest, self._gather(namespace, held, got))
        tokens = max(1, tokens or prompt.size // BYTES_PER_TOKEN_GUESS)
        remembered = self._sent_history.find(prompt, now)
        if remembered is not None:
            held_tokens = tokens * prompt.ends[remembered.boundary] // prompt.size
            self._recall(remembered, held_tokens, got, now)
        return PrefixMatch(prompt, tokens, got.local, got.pullable, got.warm, pulls)

    def _gather(self, namespace: str, held: Mapping[str, Held], got: _Gathered) -> int:
        """Enter the tokens that each live worker holds; return the most blocks that can be pulled."""
        most, most_tokens = 0, 0
        workers, local = self._fleet.workers, got.local
        for name, (incarnation, blocks) in held.items():
            worker = workers.get(name)
            if worker is None or worker.ref != (namespace, name, incarnation):
                continue
            local[name] = tokens = blocks * (worker.block_tokens or 0)
            if blocks > most and worker.state is not WorkerState.DOWN:
                most, most_tokens = blocks, tokens
        if most and got.pulls:
            got.pullable[namespace] = most_tokens
        return most

    def _recall(self, remembered: Remembered, tokens: int, got: _Gathered, now: float) -> None:
        """Enter what this router itself has sent, if it is deeper than what the index knows of.

        tokens: before the remembered boundary.
        """
        for sent in remembered.holders:
            worker = self._fleet.workers.get(sent.worker)
            if worker is None or worker.state is WorkerState.DOWN:
                continue
            if now < sent.done_at and not worker.shares_prefill:
                continue
            namespace = worker.namespace
            known = None if namespace is None else got.known.get(namespace)
            if known is not None and (remembered.boundary <= known or now - sent.at > BRIDGE_S):
                continue
            got.local[worker.name] = max(got.local.get(worker.name, 0), tokens)
            if now >= sent.done_at and namespace is not None and got.pulls:
                got.pullable[namespace] = max(got.pullable.get(namespace, 0), tokens)
                got.warm[namespace] = max(got.warm.get(namespace, -1), remembered.boundary)

    def _boundary_at(self, namespace: str, prompt: Prompt, deepest: KnownPort, blocks: int) -> int:
        """Return the index of the deepest known boundary within so many blocks, -1 when there is none."""
        if deepest.block_count <= blocks:
            return deepest.index
        within = [known.index for known in self._text.known(namespace, prompt) if known.block_count <= blocks]
        return within[-1] if within else -1
