"""From the index's answer to a plan: what of a prompt to pull, from whom, or why not. Knows no engine, does no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import Location, MissReason, PrefixHit, Tier
from ghostcacher_connector.pull.forecast import Choice, Forecaster
from ghostcacher_connector.transfer.jobs import PullSource

EQUAL_SHARE = 0.1
"""Holders of the same blocks whose gains differ by less than this share of the pull's time count as equal: rates are
averages of a few pulls. Each reader then takes the one that it asks first (`LiveWorkers.candidates`), so that readers
are spread over the holders, instead of all reading from the one that measured best."""


class Holding(NamedTuple):
    """The blocks that one worker holds, from the first one that is wanted on."""

    worker: str
    incarnation: bytes
    locations: Sequence[Location]
    windows: Sequence[Location] | None = None
    """What a hit of exactly these blocks needs in the other KV cache groups; None: there are none."""

    @property
    def tier(self) -> Tier:
        """Where most of them lie: a pull is about as fast as from there."""
        return Counter(location.tier for location in self.locations).most_common(1)[0][0]


class _Ranked(NamedTuple):
    choice: Choice
    blocks: int
    """How many blocks it saves."""
    holding: Holding
    place: int
    """Its place among those that were given: see EQUAL_SHARE."""


@dataclass(frozen=True, slots=True)
class PullPlan:
    """Blocks ``[first_block, first_block + block_count)`` of the prompt are worth pulling."""

    first_block: int
    block_count: int
    sources: tuple[PullSource, ...]
    """Whom to ask, the best one first; entry i of each belongs to block ``first_block + i``."""
    pull_s: float
    """How long the pull is forecast to take, once it is carried out."""
    tiers: tuple[Tier, ...] = ()
    """Where most of what each source holds lies."""
    window_blocks: int | None = None
    """How many blocks of other KV cache groups follow in each source, which serve a hit of all these blocks and no
    other; None: there are no such groups."""

    def tier_of(self, worker: str) -> Tier:
        """Return the tier that a worker is asked for; DEVICE for one that is not asked."""
        pairs = zip(self.sources, self.tiers, strict=False)
        return next((tier for source, tier in pairs if source.worker == worker), Tier.DEVICE)

    def usable(self, leading: int) -> int:
        """Return how many of the blocks are there after a pull. With several KV cache groups: all of them, or none.

        leading: how many slots of a source are valid before the first one that is not.
        """
        if self.window_blocks is None:
            return leading
        return self.block_count if leading == self.block_count + self.window_blocks else 0

    def sources_of(self, count: int) -> tuple[PullSource, ...]:
        """Return the sources of the plan's first `count` blocks alone; with several KV cache groups, of all or none."""
        if self.window_blocks is not None:
            count = count + self.window_blocks if count == self.block_count else 0
        return tuple(
            s._replace(remote_slots=s.remote_slots[:count], generations=s.generations[:count]) for s in self.sources
        )


class PullPlanner:
    """Weighs holders against each other and against computing."""

    def __init__(self, settings: Settings, forecaster: Forecaster, *, block_tokens: int, block_bytes: int) -> None:
        """block_tokens: in one block. block_bytes: of one block on one rank."""
        self._settings = settings
        self._forecaster = forecaster
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes

    def plan(
        self, hits: Sequence[PrefixHit], first_block: int, end_block: int, own: Holding | None = None
    ) -> PullPlan | MissReason:
        """Return what to pull of blocks ``[first_block, end_block)``, or why nothing is.

        own: what this worker's own lower tiers hold of them.
        """
        ranked = self._rank(_holdings(hits, first_block, end_block, own))
        if not ranked:
            return MissReason.NOT_INDEXED
        choice, count, best, _ = ranked[0]
        if self._settings.pull != "always" and not choice.pull:
            return MissReason.SLOWER_THAN_RECOMPUTE
        if best.windows is not None:
            ranked = [entry for entry in ranked if entry.blocks == count]
        chosen = ranked[: self._settings.pull_sources_max]
        return PullPlan(
            first_block,
            count,
            tuple(_source(entry.holding, min(entry.blocks, count)) for entry in chosen),
            choice.pull_s,
            tuple(entry.holding.tier for entry in chosen),
            None if best.windows is None else len(best.windows),
        )

    def _rank(self, holdings: Sequence[Holding]) -> list[_Ranked]:
        """Forecast each holding, best first.

        Of those that are about as good as the best one, the one that was given first comes first: see EQUAL_SHARE.
        """
        ranked: list[_Ranked] = []
        for place, holding in enumerate(holdings):
            count = len(holding.locations)
            tokens, pull_bytes = count * self._block_tokens, (count + len(holding.windows or ())) * self._block_bytes
            choice = self._forecaster.compare(holding.worker, tokens, pull_bytes, holding.tier)
            ranked.append(_Ranked(choice, count, holding, place))
        if self._settings.pull == "always":
            ranked.sort(key=lambda entry: (entry.blocks, entry.choice.gain_s), reverse=True)
        else:
            ranked.sort(key=lambda entry: (entry.choice.gain_s, entry.blocks), reverse=True)
        if len(ranked) > 1:
            _prefer_first(ranked)
        return ranked


def _holdings(hits: Sequence[PrefixHit], first_block: int, end_block: int, own: Holding | None) -> list[Holding]:
    """Return who holds any of these blocks: this worker itself first, the others in the order given."""
    found = [own] if own is not None else []
    found += [_holding(hit, first_block, end_block) for hit in hits]
    return [holding for holding in found if holding.locations]


def _holding(hit: PrefixHit, first_block: int, end_block: int) -> Holding:
    """Return which of these blocks a hit gives; with several KV cache groups it is of use as a whole, or not at all."""
    if hit.windows is None:
        return Holding(hit.worker, hit.incarnation, _in_slots(hit.locations[first_block:end_block]))
    locations, windows = hit.locations[first_block:], [at for block, at in hit.windows if block >= first_block]
    reads = [*locations, *windows]
    is_whole = hit.length <= end_block and len(_in_slots(reads)) == len(reads)
    return Holding(hit.worker, hit.incarnation, locations if is_whole else (), windows)


def _in_slots(locations: Sequence[Location]) -> Sequence[Location]:
    """Return the leading blocks that lie in a slot of a rank: what the index says of other tiers cannot be pulled."""
    count = next((number for number, at in enumerate(locations) if at.tier is Tier.OBJECT), len(locations))
    return locations[:count]


def _prefer_first(ranked: list[_Ranked]) -> None:
    """Put that holder in front which was given first, of those about as good as the best one."""
    best = ranked[0]
    least_s = best.choice.gain_s - EQUAL_SHARE * best.choice.pull_s
    equal = [entry for entry in ranked if entry.blocks == best.blocks and entry.choice.gain_s >= least_s]
    first = min(equal, key=lambda entry: entry.place)
    ranked.remove(first)
    ranked.insert(0, first)


def _source(holding: Holding, count: int) -> PullSource:
    locations = [*holding.locations[:count], *(holding.windows or ())]
    slots = np.fromiter((location.slot for location in locations), dtype=np.int64, count=len(locations))
    generations = np.fromiter((location.generation for location in locations), dtype=np.uint64, count=len(locations))
    return PullSource(holding.worker, holding.incarnation, slots, generations)
