"""Matches one prompt against the fleet: how much of it each worker has, and how much could be pulled from a peer.

Three sources are put together: the prefix map (which block hashes the prompt's text has), the prefix locations (which
workers hold these blocks, as the index says), and the history of what this router itself has sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from ghostcacher_router.ports import FleetPort, KnownPort, PrefixMapPort, WorkerPort
from ghostcacher_router.signals.prefix_locations import HeldPrefix, PrefixLocations
from ghostcacher_router.signals.sent_history import HistoryMatch, SentHistory, SentPrompt
from ghostcacher_router.signals.ttft_forecast import Column, WorkerMatch
from ghostcacher_router.types import Prompt, WorkerState

BRIDGE_S = 5.0
"""For so long a prompt that this router sent counts as held by its worker beyond what the prefix map knows of it:
reporting its blocks takes time."""

BYTES_PER_TOKEN_GUESS = 4
"""For plain engines, which report no token counts: English prose under most vocabularies."""

RESOLVED_MAX = 512
"""Prefixes of which it is remembered who holds them, among the workers that there are: some 25 KiB each, where 512
workers hold them all."""

_new = tuple.__new__
"""What a NamedTuple's own constructor calls, which takes twice as long. Called for each worker of each request."""


class LookupNeeded(NamedTuple):
    """The index has to be asked first which workers of a namespace hold the prompt."""

    namespace: str
    prompt: Prompt


class Holders:
    """How many tokens of a prefix each worker has in its own cache."""

    __slots__ = ("_column", "_list", "_places", "most", "most_tokens", "tokens")

    def __init__(self, tokens: Mapping[str, int], most: int = 0, most_tokens: int = 0) -> None:
        """tokens: by worker name; workers without any are absent. most, most_tokens: what can be pulled of one."""
        self.tokens, self.most, self.most_tokens = tokens, most, most_tokens
        self._places: Mapping[str, int] | None = None
        self._column: Column | None = None
        self._list: Sequence[int] | None = None

    def listed(self, places: Mapping[str, int]) -> Sequence[int]:
        """Return what `column` does, as a plain list."""
        if self._list is None or self._places is not places:
            self._list = [self.tokens.get(worker, 0) for worker in places]
            self._places, self._column = places, None
        return self._list

    def column(self, places: Mapping[str, int]) -> Column:
        """Return the tokens of each worker of a list, not to be changed. places: worker -> its place in the list."""
        if self._column is None or self._places is not places:
            column = np.zeros(len(places))
            for worker, tokens in self.tokens.items():
                if (place := places.get(worker)) is not None:
                    column[place] = tokens
            self._places, self._column, self._list = places, column, None
        return self._column


NOBODY = Holders({})


class PrefixMatch:
    """What the fleet has of one prompt at one moment. Tokens count from the prompt's first one."""

    __slots__ = ("held", "prompt", "pullable", "pulls", "sent", "tokens", "warm")

    def __init__(  # noqa: PLR0917 - keywords take longer
        self,
        prompt: Prompt,
        tokens: int,
        held: Holders,
        sent: dict[str, int],
        pullable: dict[str | None, int],
        warm: dict[str, int],
        pulls: bool,
    ) -> None:
        """Put together what is known.

        tokens: of the whole prompt: an estimate, unless the prompt came as token ids.
        held: tokens in each worker's own cache, as the index says.
        sent: the same where this router has sent the worker more than the index says, by worker name.
        pullable: the most tokens that one worker of a namespace has for its peers, by namespace.
        warm: index of the deepest boundary that a worker of a namespace has computed, by namespace, where one has.
        pulls: whether workers can find what their peers have, which needs Redis.
        """
        self.prompt, self.tokens, self.held, self.sent = prompt, tokens, held, sent
        self.pullable, self.warm, self.pulls = pullable, warm, pulls

    def at(self, worker: WorkerPort) -> WorkerMatch:
        """Return the match at one worker."""
        local = self.sent.get(worker.name) or self.held.tokens.get(worker.name, 0)
        return _new(WorkerMatch, (local, self.pullable.get(worker.namespace, 0), 0.0))

    def local_column(self, places: Mapping[str, int]) -> Column | float:
        """Return the tokens in the own cache of each worker of a list. places: worker -> its place in the list."""
        if self.held is NOBODY and not self.sent:
            return 0.0
        column = self.held.column(places)
        if self.sent:
            column = column.copy()
            for worker, tokens in self.sent.items():
                if (place := places.get(worker)) is not None:
                    column[place] = tokens
        return column

    def local_list(self, places: Mapping[str, int]) -> Sequence[int]:
        """Return what `local_column` does, as a plain list. places: in the order of their places."""
        found = self.held.listed(places)
        if self.sent:
            found = list(found)
            for worker, tokens in self.sent.items():
                if (place := places.get(worker)) is not None:
                    found[place] = tokens
        return found

    def pullable_list(self, workers: Sequence[WorkerPort], namespaces: Sequence[str | None]) -> Iterable[int]:
        """Return what `pullable_column` does, worker by worker."""
        if len(namespaces) == 1:
            return repeat(self.pullable.get(namespaces[0], 0))
        return [self.pullable.get(worker.namespace, 0) for worker in workers]

    def pullable_column(self, workers: Sequence[WorkerPort], namespaces: Sequence[str | None]) -> Column | float:
        """Return the most tokens that each worker of a list can pull. namespaces: of these workers, each once."""
        if len(namespaces) == 1:
            return float(self.pullable.get(namespaces[0], 0))
        return np.array([self.pullable.get(worker.namespace, 0) for worker in workers], dtype=float)

    @property
    def new_tokens(self) -> int:
        """Return how many tokens no worker has, as far as the index knows."""
        most = self.held.most_tokens
        for tokens in self.pullable.values():
            if tokens > most:  # noqa: PLR1730 -- max() takes five times as long
                most = tokens
        return self.tokens - most

    def warm_in(self, namespace: str) -> int:
        """Return the index of the deepest boundary that a worker of a namespace has computed, -1 when none has."""
        return self.warm.get(namespace, -1)

    def tokens_at(self, boundary: int) -> int:
        """Return the estimated tokens before a boundary, given by its index."""
        return self.tokens * self.prompt.ends[boundary] // max(1, self.prompt.size)


class _Resolved(NamedTuple):
    """Who holds a prefix, and what that was found out from. While these are the same objects, so are the holders."""

    held: Mapping[str, HeldPrefix]
    workers: Sequence[WorkerPort]
    holders: Holders


class PrefixMatcher:
    """Matches prompts. On the event loop only; it never waits."""

    def __init__(
        self, fleet: FleetPort, prefix_map: PrefixMapPort, locations: PrefixLocations, history: SentHistory
    ) -> None:
        self._fleet, self._prefix_map, self._locations, self._history = fleet, prefix_map, locations, history
        self._resolved: OrderedDict[bytes, _Resolved] = OrderedDict()

    def match(
        self,
        prompt: Prompt,
        workers: Sequence[WorkerPort],
        namespaces: Iterable[str | None],
        now: float,
        *,
        pulls: bool,
        may_look_up: bool,
        newer_than: float | None = None,
    ) -> PrefixMatch | LookupNeeded:
        """Return the match of a prompt with the workers of some namespaces.

        workers: the candidates: another list when anything in the fleet has changed.
        namespaces: None stands for plain engines, of which only the history knows anything.
        pulls: whether workers can pull from their peers now.
        may_look_up: whether LookupNeeded is an answer; otherwise what is known must do.
        newer_than: loop clock, s; what the index said before that time does not count.
        """
        tokens, held = prompt.tokens or 0, NOBODY
        known: dict[str, KnownPort] = {}
        pullable: dict[str | None, int] = {}
        warm: dict[str, int] = {}
        for namespace in namespaces:
            if namespace is None:
                continue
            tokens = tokens or self._prefix_map.tokens_of(namespace, prompt)
            deepest = self._prefix_map.deepest(namespace, prompt)
            if deepest is not None:
                said = self._locations.get(namespace, deepest, newer_than=newer_than, old=not may_look_up)
                if said is None:
                    return LookupNeeded(namespace, prompt)
                known[namespace] = deepest
                holders = self._holders(namespace, deepest.block_hash, said, workers)
                held = holders if held is NOBODY else _both(held, holders)
                if holders.most and pulls:
                    pullable[namespace] = holders.most_tokens
                warm[namespace] = self._boundary_within(namespace, prompt, deepest, holders.most)
        tokens = tokens or prompt.size // BYTES_PER_TOKEN_GUESS or 1
        match = PrefixMatch(prompt, tokens, held, {}, pullable, warm, pulls)
        sent = self._history.find(prompt, now)
        if sent is not None:
            self._add_history(sent, match, known, now)
        return match

    def _holders(
        self, namespace: str, block_hash: bytes, held: Mapping[str, HeldPrefix], candidates: Sequence[WorkerPort]
    ) -> Holders:
        """Return what each live worker holds of a prefix, and the most that can be pulled."""
        known = self._resolved.get(block_hash)
        if known is not None and known.held is held and known.workers is candidates:
            self._resolved.move_to_end(block_hash)
            return known.holders
        most, most_tokens = 0, 0
        workers, tokens_of = self._fleet.workers, {}
        for name, (incarnation, blocks) in held.items():
            worker = workers.get(name)
            if worker is None or worker.ref != (namespace, name, incarnation):
                continue
            tokens_of[name] = tokens = blocks * (worker.block_tokens or 0)
            if blocks > most and worker.state is not WorkerState.DOWN:
                most, most_tokens = blocks, tokens
        holders = Holders(tokens_of, most, most_tokens)
        self._resolved[block_hash] = _Resolved(held, candidates, holders)
        if len(self._resolved) > RESOLVED_MAX:
            self._resolved.popitem(last=False)
        return holders

    def _add_history(
        self, sent_before: HistoryMatch, match: PrefixMatch, known: Mapping[str, KnownPort], now: float
    ) -> None:
        """Add what this router itself has sent, where the index cannot know better.

        known: the deepest boundary whose blocks the prefix map knows, by namespace.
        """
        tokens, boundary = 0, sent_before.boundary
        for sent in sent_before.holders:
            worker = self._fleet.workers.get(sent.worker)
            if worker is None or worker.state is WorkerState.DOWN or worker.ref != sent.ref:
                continue
            if now < sent.computed_at and not worker.shares_prefill:
                continue
            namespace = worker.namespace
            deepest = None if namespace is None else known.get(namespace)
            if (
                namespace is not None
                and deepest is not None
                and self._is_settled(sent, boundary, namespace, deepest, now)
            ):
                continue
            tokens = tokens or match.tokens_at(boundary)
            if tokens > (match.sent.get(worker.name) or match.held.tokens.get(worker.name, 0)):
                match.sent[worker.name] = tokens
            if now >= sent.done_at and namespace is not None and match.pulls:
                match.pullable[namespace] = max(match.pullable.get(namespace, 0), tokens)
                match.warm[namespace] = max(match.warm.get(namespace, -1), boundary)

    def _is_settled(self, sent: SentPrompt, boundary: int, namespace: str, known: KnownPort, now: float) -> bool:
        """Return whether the index knows better than this router whether a worker holds what it was sent.

        boundary: the index of the one up to which it was sent. known: the deepest one whose blocks are known.
        """
        if now < sent.computed_at:
            # It will be there when the next request has its turn, which comes after this one's.
            return now > sent.due_at
        if boundary > known.index:
            return now - sent.computed_at > BRIDGE_S
        return self._locations.asked_at(namespace, known) > sent.settled_at

    def _boundary_within(self, namespace: str, prompt: Prompt, deepest: KnownPort, blocks: int) -> int:
        """Return the index of the deepest known boundary that ends within so many blocks, -1 when there is none."""
        if deepest.block_count <= blocks:
            return deepest.index
        within = [known.index for known in self._prefix_map.known(namespace, prompt) if known.block_count <= blocks]
        return within[-1] if within else -1


def _both(one: Holders, two: Holders) -> Holders:
    """Return the holders in two namespaces together; what can be pulled is of each namespace alone."""
    return Holders({**one.tokens, **two.tokens})
