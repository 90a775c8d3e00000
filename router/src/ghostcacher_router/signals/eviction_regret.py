"""Estimates how likely it is that what full caches evict next is asked for again, the *regret* of an eviction, and
what evicting costs.

A placement that brings KV blocks into a full cache evicts as many others, those that were used longest ago. What that
costs is what computing them again costs, times the probability that somebody asks for them again. The probability is
measured on the prompts themselves, in a stack of the boundaries that were asked for lately, latest first:

    top                                    deep                                            forgotten
    | half of what the fleet's caches hold | up to twice of what they hold                 |
                                             ^ blocks that are evicted next are somewhere here

Every boundary that sinks from the top into the deep part either comes back from there, or is forgotten; the share of
those that come back is the regret. What is asked for all the time (a common system prompt) never sinks, what nobody
asks for again (most of a conversation's last turns) never comes back, and documents that just about fill the fleet's
caches all come back.

Of what is in the deep part now neither is known. Were it left out, or counted as forgotten, the regret would be wrong
for as long as it takes to fill the caches several times, and that is when copies are made that push out others later.
So it counts with the chance that it comes back before it is forgotten, at the rate at which others have come back from
there so far: ``1 - exp(-rate * depth)``.

*The price.* What was evicted and is asked for again is computed, and evicts as much in turn, of which somebody asks for
the same share again, and so on: with a regret of r that is ``r + r^2 + r^3 + ... = r / (1 - r)`` times computing it. It
ends where what is evicted is no last copy. How often that is so follows from how much of the caches the texts take that
are asked for again (working_sets.py): while each of them could be there twice, only copies have to go, and where
there is no room for a second copy of any, none. In between it is taken to be in proportion.

Only some boundaries are looked at, those with the smallest digests: equal text is always looked at or never, so a
sample tells of depths what the whole would, in a bounded size. (The idea is SHARDS, Waldspurger et al., FAST 2015.)
A router that sees a part of all requests finds the same depths: its gaps are longer, and hold as much less. But it
needs as much longer to find them, and meanwhile copies are made for nothing. So what counts is what workers tell
everybody of the prompts that they receive; only of plain engines it is what the router itself has sent there. Where
all engines are plain nobody asks for the regret, so these prompts are set aside, and looked at when somebody does.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from math import exp

from ghostcacher_router.signals.working_sets import ROOM_SHARE, Home, WorkingSets

SAMPLES = 4096
"""Boundaries that stand for what the fleet's caches hold."""

TOP_SHARE, STACK_SHARE = 0.5, 2.0
"""Where the deep part begins and ends, as shares of what the caches hold. Copies make them hold less than that, and
what is no part of any prompt (answers) takes room, too: so it begins early. Its end only has to lie well beyond."""

MEMORY = 2.0
"""The share is of the last boundaries that sank: of about so many times as there are in the deep part."""

TWICE_SHARE = 0.5
"""The share of the caches that texts take which could all be there twice."""

CHAIN_MAX = 2 / 3
"""The largest regret that the price is made of: it is 2 then. Evictions that follow from each other for longer than
that lie far ahead, and a regret close to 1 is not known well enough for what 1 / (1 - r) makes of it. It is chosen:
with 1/2, 2/3 and 4/5 three workers that hold just 60 documents compute 22.7, 21.5 and 21.5 % of the prompt tokens."""

DIGEST_SPAN = 1 << 64

ASIDE_MAX = 1 << 15
"""Boundaries of all prompts that are set aside: 4 MiB. Looking at all of them takes some 20 ms."""


class EvictionRegret:
    """A stack of sampled boundaries. On the event loop only."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self._samples = samples
        self._top: OrderedDict[bytes, Home] = OrderedDict()
        self._deep: OrderedDict[bytes, Home] = OrderedDict()
        self._sets = WorkingSets()
        self._came_back = self._forgotten = 0.0
        """What became of boundaries that sank."""
        self.sunk = 0
        """Boundaries that have sunk from the top into the deep part, ever: a clock that stands still while nothing is
        evicted, and counts `held` in the time in which caches take in as much as they hold."""
        self._exposed = 0.0
        """How far all boundaries in the deep part have sunk there, in all."""
        self._tokens = self._boundaries = 0
        """Of all prompts that were noted."""
        self.held = 0
        """How many of the boundaries that are looked at the caches hold; 0 when that is not known."""
        self._top_max = self._deep_max = 0
        self._below = b"\xff" * 9
        """Boundaries with smaller digests are looked at."""
        self._tokens_each = 0.0
        """Tokens for which a boundary in the stack stands."""
        self._aside: deque[tuple[Sequence[bytes], str]] = deque()
        """Prompts that are set aside, by their boundaries, and their workers; oldest first."""
        self._aside_size = 0
        """Their boundaries, in all."""

    def __repr__(self) -> str:
        return f"EvictionRegret({self.share:.2f}, top={len(self._top)}, deep={len(self._deep)})"

    @property
    def share(self) -> float:
        """Return which share of what is evicted next will be asked for again, in [0, 1]. 0 before anything sank."""
        if self._aside:
            self._look_at_aside()
        came_back, forgotten = self._came_back, self._forgotten
        if not came_back:
            return 0.0
        undecided = len(self._deep)
        chance = 1.0 - exp(-came_back / self._exposed * self._deep_max)
        return (came_back + chance * undecided) / (came_back + forgotten + undecided)

    @property
    def price(self) -> float:
        """Return what a token that is brought into a full cache costs, as a multiple of computing a token."""
        if self._aside:
            self._look_at_aside()
        if not self._came_back:
            return 0.0
        taken = self._sets.total / self.held if self.held else 0.0
        last_copies = min(1.0, max(0.0, (taken - TWICE_SHARE) / (ROOM_SHARE - TWICE_SHARE)))
        share = min(self.share * last_copies, CHAIN_MAX)
        return share / (1.0 - share)

    @property
    def looked_at_below(self) -> bytes:
        """Boundaries with smaller digests are looked at."""
        return self._below

    def working_set_tokens(self, worker: str) -> float:
        """Return how many tokens have their home at a worker, weighted by how likely they are asked for again."""
        if self._aside:
            self._look_at_aside()
        return self._sets.size(worker) * self._tokens_each

    def home_tokens(self, digests: Sequence[bytes]) -> dict[str, float]:
        """Return how many tokens of a prompt are in the working set of each worker; those without any are absent."""
        if self._aside:
            self._look_at_aside()
        found: dict[str, float] = {}
        top, deep, below = self._top, self._deep, self._below
        for digest in [one for one in digests if one < below]:
            home = top.get(digest) or deep.get(digest)
            if home is not None:
                found[home.worker] = found.get(home.worker, 0.0) + self._sets.weight(home) * self._tokens_each
        return found

    def resize(self, capacity_tokens: int) -> None:
        """Set how many tokens the caches of the fleet hold; 0 when that is not known."""
        if not self._boundaries or not self._tokens:
            return
        held = capacity_tokens * self._boundaries // self._tokens
        sampled = min(held, self._samples)
        self.held, self._top_max = sampled, int(sampled * TOP_SHARE)
        self._deep_max = int(sampled * STACK_SHARE) - self._top_max
        rate = sampled / held if held else 0.0
        self._tokens_each = capacity_tokens / sampled if sampled else 0.0
        self._below = b"\xff" * 9 if rate >= 1.0 else int(rate * DIGEST_SPAN).to_bytes(8, "big")

    def measure(self, boundaries: int, tokens: int) -> None:
        """Learn from a prompt, before it is noted, for how many tokens a boundary stands. See `note`."""
        self._tokens += tokens
        self._boundaries += boundaries

    def set_aside(self, digests: Sequence[bytes], worker: str) -> None:
        """Note a prompt that a worker is sent once somebody asks, unless too many come until then. See `note`."""
        self._aside.append((digests, worker))
        self._aside_size += len(digests)
        while self._aside_size > ASIDE_MAX:
            self._aside_size -= len(self._aside.popleft()[0])

    def note(self, digests: Sequence[bytes], worker: str) -> None:
        """Note a prompt that a worker is sent.

        digests: at its boundaries, each of all text before it. They may be of any kind that is evenly distributed.
        """
        if self._aside:
            self._look_at_aside()
        self._note(digests, worker)

    def _look_at_aside(self) -> None:
        aside, self._aside, self._aside_size = self._aside, deque(), 0
        for digests, worker in aside:
            self._note(digests, worker)

    def _note(self, digests: Sequence[bytes], worker: str) -> None:
        if not self._top_max:
            return
        top, deep, below, sets = self._top, self._deep, self._below, self._sets
        for digest in [one for one in digests if one < below]:
            before = top.get(digest)
            if before is not None and before.repeated and before.worker == worker:
                # At home, as it was: most of what is asked for often.
                top.move_to_end(digest)
                continue
            before = top.pop(digest, None)
            if before is None:
                before = deep.pop(digest, None)
                self._came_back += before is not None
            top[digest] = sets.move(before, worker)
        while len(top) > self._top_max:
            digest, home = top.popitem(last=False)
            deep[digest] = home
            self.sunk += 1
            self._exposed += len(deep)
        while len(deep) > self._deep_max:
            sets.forget(deep.popitem(last=False)[1])
            self._forgotten += 1.0
        if self._came_back + self._forgotten > MEMORY * self._deep_max:
            self._came_back /= 2.0
            self._forgotten /= 2.0
            self._exposed /= 2.0
            sets.fade()

    def clear(self) -> None:
        """Forget the boundaries."""
        self._aside.clear()
        self._aside_size = 0
        self._top.clear()
        self._deep.clear()
        self._sets.clear()
