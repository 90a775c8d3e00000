"""What is known about one prompt at one moment: who holds how much of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ghostcacher_router.routing.memory import Memory, Remembered
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
        found = self.reaches.get(worker.name)
        return self.others.get(worker.namespace, NOTHING) if found is None else found

    def tokens_at(self, index: int) -> int:
        """Return the estimated tokens before a boundary."""
        return self.tokens * self.prompt.ends[index] // max(1, self.prompt.size)


class _Gathered:
    """What a look has found so far, in tokens. pullable: the most in each namespace."""

    __slots__ = ("known", "local", "pullable", "pulls")

    def __init__(self, pulls: bool) -> None:
        self.pulls = pulls
        self.known: dict[str, Sequence[KnownPort]] = {}
        self.local: dict[str, int] = {}
        self.pullable: dict[str | None, int] = {}


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
        got = _Gathered(pulls)
        for namespace in namespaces:
            if namespace is None:
                continue
            tokens = tokens or self._text.tokens_of(namespace, prompt)
            got.known[namespace] = boundaries = self._text.known(namespace, prompt)
            if boundaries:
                held = self._residency.get(namespace, boundaries, newer_than=newer_than, old=not ask)
                if held is None:
                    return Unknown(namespace, boundaries)
                warm = max(warm, _boundary_at(boundaries, self._gather(namespace, held, got)))
        tokens = max(1, tokens or prompt.size // BYTES_PER_TOKEN_GUESS)
        remembered = self._memory.find(prompt, now)
        if remembered is not None:
            held_tokens = tokens * prompt.ends[remembered.boundary] // prompt.size
            if self._recall(remembered, held_tokens, got, now):
                warm = max(warm, remembered.boundary)
        pullable = got.pullable
        reaches = {name: Reach(held, pullable.get(self._namespace(name), 0), 0.0) for name, held in got.local.items()}
        others = {namespace: Reach(0, most, 0.0) for namespace, most in pullable.items()}
        return Sight(prompt, tokens, reaches, others, warm, got.known, pulls)

    def _gather(self, namespace: str, held: Mapping[str, Held], got: _Gathered) -> int:
        """Enter the tokens that each live worker holds; return the most blocks that can be pulled."""
        most, most_tokens = 0, 0
        for name, (incarnation, blocks) in held.items():
            worker = self._fleet.workers.get(name)
            ref = None if worker is None else worker.ref
            if worker is None or ref is None or ref.incarnation != incarnation or ref.namespace != namespace:
                continue
            got.local[name] = tokens = blocks * (worker.block_tokens or 0)
            if blocks > most and worker.state is not WorkerState.DOWN:
                most, most_tokens = blocks, tokens
        if most and got.pulls:
            got.pullable[namespace] = most_tokens
        return most

    def _recall(self, remembered: Remembered, tokens: int, got: _Gathered, now: float) -> bool:
        """Enter what this router itself has sent, if it is deeper than what the index knows of.

        tokens: before the remembered boundary. Returns whether they are computed, and can be pulled.
        """
        boundary, sent = remembered
        worker = self._fleet.workers.get(sent.worker)
        if worker is None or worker.state is WorkerState.DOWN:
            return False
        namespace = worker.namespace
        boundaries = got.known.get(namespace) if namespace is not None else None
        if boundaries and (boundary <= boundaries[-1].index or now - sent.at > BRIDGE_S):
            return False
        for name in (worker.name, *sent.others):
            if name in self._fleet.workers:
                got.local[name] = max(got.local.get(name, 0), tokens)
        if now < sent.done_at or namespace is None or not got.pulls:
            return False
        got.pullable[namespace] = max(got.pullable.get(namespace, 0), tokens)
        return True

    def _namespace(self, worker: str) -> str | None:
        return self._fleet.workers[worker].namespace


def _boundary_at(boundaries: Sequence[KnownPort], blocks: int) -> int:
    """Return the index of the deepest boundary within so many blocks, -1 when there is none."""
    for boundary in reversed(boundaries):
        if boundary.block_count <= blocks:
            return boundary.index
    return -1
