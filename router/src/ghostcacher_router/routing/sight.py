"""What is known about one prompt at one moment: who holds how much of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ghostcacher_router.routing.memory import Memory
from ghostcacher_router.routing.ports import FleetPort, KnownPort, TextPort, WorkerPort
from ghostcacher_router.routing.residency import Held, Residency
from ghostcacher_router.routing.score import NOTHING, Reach
from ghostcacher_router.types import Prompt, WorkerState

BRIDGE_S = 5.0
"""What was sent is believed to be held beyond what the index says for so long: until it has been reported."""

BYTES_PER_TOKEN_GUESS = 4
"""Of plain engines, which report nothing: English prose under most vocabularies."""


class Unknown(NamedTuple):
    """The index must be asked about this text first."""

    namespace: str
    known: Sequence[KnownPort]


class Sight(NamedTuple):
    """Who holds how much of a prompt. tokens: of the whole prompt, an estimate unless it came as tokens.

    reaches: of the workers that hold some of it; others: of all others, by namespace. warm: index of the deepest
    boundary that a worker has computed, -1 when none has; known: the prompt's known boundaries, by namespace.
    pulls: whether workers find what their peers have: Redis answers.
    """

    prompt: Prompt
    tokens: int
    reaches: dict[str, Reach]
    others: dict[str | None, Reach]
    warm: int
    known: dict[str, Sequence[KnownPort]]
    pulls: bool

    def reach(self, worker: WorkerPort) -> Reach:
        """Return how much of the prompt a worker can have."""
        return self.reaches.get(worker.name) or self.others.get(worker.namespace, NOTHING)

    def tokens_at(self, index: int) -> int:
        """Return the estimated tokens before a boundary."""
        return self.tokens * self.prompt.ends[index] // max(1, self.prompt.size)


class Looker:
    """Puts together what the learned text, the index and this router's own memory say."""

    def __init__(self, fleet: FleetPort, text: TextPort, residency: Residency, memory: Memory) -> None:
        self._fleet, self._text, self._residency, self._memory = fleet, text, residency, memory

    def look(
        self,
        prompt: Prompt,
        namespaces: Iterable[str | None],
        now: float,
        *,
        pulls: bool,
        ask: bool,
        newer_than: float | None = None,
    ) -> Sight | Unknown:
        """Return what is known; Unknown when the index has to be asked first, and (ask) that is wanted.

        newer_than: loop clock, s; what the index said before does not do.
        """
        tokens, warm = prompt.tokens or 0, -1
        known: dict[str, Sequence[KnownPort]] = {}
        local: dict[str, int] = {}
        pullable: dict[str | None, int] = {}
        for namespace in namespaces:
            if namespace is None:
                continue
            tokens = tokens or self._text.tokens_of(namespace, prompt)
            known[namespace] = boundaries = self._text.known(namespace, prompt)
            if boundaries:
                held = self._residency.get(namespace, boundaries, newer_than=newer_than, old=not ask)
                if held is None:
                    return Unknown(namespace, boundaries)
                blocks, most = self._holders(namespace, held, local)
                if most and pulls:
                    pullable[namespace] = most
                warm = max(warm, _boundary_at(boundaries, blocks))
        tokens = max(1, tokens or prompt.size // BYTES_PER_TOKEN_GUESS)
        return self._recall(Sight(prompt, tokens, {}, {}, warm, known, pulls), local, pullable, now)

    def _holders(self, namespace: str, held: Mapping[str, Held], local: dict[str, int]) -> tuple[int, int]:
        """Enter the tokens that each live worker holds; return the most that can be pulled, in blocks and tokens."""
        most = 0, 0
        for name, (incarnation, blocks) in held.items():
            worker = self._fleet.workers.get(name)
            ref = None if worker is None else worker.ref
            if worker is None or ref is None or ref.incarnation != incarnation or ref.namespace != namespace:
                continue
            local[name] = blocks * (worker.block_tokens or 0)
            if worker.state is not WorkerState.DOWN:
                most = max(most, (blocks, local[name]))
        return most

    def _recall(self, sight: Sight, local: dict[str, int], pullable: dict[str | None, int], now: float) -> Sight:
        """Add what this router itself has sent, as far as it is deeper than what the index knows of."""
        remembered, warm = self._memory.find(sight.prompt, now), sight.warm
        worker = None if remembered is None else self._fleet.workers.get(remembered.sent.worker)
        if remembered is not None and worker is not None and worker.state is not WorkerState.DOWN:
            boundary, sent = remembered
            boundaries = sight.known.get(worker.namespace) if worker.namespace is not None else None
            if not boundaries or (boundary > boundaries[-1].index and now - sent.at <= BRIDGE_S):
                tokens = sight.tokens_at(boundary)
                local[worker.name] = max(local.get(worker.name, 0), tokens)
                if now >= sent.done_at and worker.namespace is not None and sight.pulls:
                    warm = max(warm, boundary)
                    pullable[worker.namespace] = max(pullable.get(worker.namespace, 0), tokens)
        others: dict[str | None, Reach] = {ns: Reach(0, most, 0.0) for ns, most in pullable.items()}
        for name, tokens in local.items():
            namespace = self._fleet.workers[name].namespace
            sight.reaches[name] = Reach(tokens, pullable.get(namespace, 0), 0.0)
        return sight._replace(others=others, warm=warm)


def _boundary_at(boundaries: Sequence[KnownPort], blocks: int) -> int:
    """Return the index of the deepest boundary within so many blocks, -1 when there is none."""
    for boundary in reversed(boundaries):
        if boundary.block_count <= blocks:
            return boundary.index
    return -1
