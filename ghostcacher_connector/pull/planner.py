"""From the index's answer to a plan: what of a prompt to pull, from whom, or why not. Knows no engine, does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.types import MissReason, PrefixHit, Tier
from ghostcacher_connector.pull.forecast import Choice, Forecaster
from ghostcacher_connector.transfer.jobs import PullSource

EQUAL_SHARE = 0.1
"""Holders of the same blocks whose gains differ by less than this share of the pull's time count as equal: rates are
averages of a few pulls. Each reader then takes the one that it asks first (`LiveWorkers.candidates`), so that readers
are spread over the holders, instead of all reading from the one that measured best."""


@dataclass(frozen=True, slots=True)
class PullPlan:
    """Blocks ``[first_block, first_block + block_count)`` of the prompt are worth pulling."""

    first_block: int
    block_count: int
    sources: tuple[PullSource, ...]
    """Whom to ask, the best one first; entry i of each belongs to block ``first_block + i``."""
    pull_s: float
    """How long the pull is forecast to take, once it is carried out."""

    def sources_of(self, count: int) -> tuple[PullSource, ...]:
        """Return the sources of the plan's first `count` blocks alone."""
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

    def plan(self, hits: Sequence[PrefixHit], first_block: int, end_block: int) -> PullPlan | MissReason:
        """Return what to pull of blocks ``[first_block, end_block)``, or why nothing is."""
        ranked = self._rank(hits, first_block, end_block)
        if not ranked:
            return MissReason.NOT_INDEXED
        choice, count, _ = ranked[0]
        if self._settings.pull == "auto" and not choice.pull:
            return MissReason.SLOWER_THAN_RECOMPUTE
        sources = tuple(
            _source(hit, first_block, min(n, count)) for _, n, hit in ranked[: self._settings.pull_sources_max]
        )
        return PullPlan(first_block, count, sources, choice.pull_s)

    def _rank(self, hits: Sequence[PrefixHit], first_block: int, end_block: int) -> list[tuple[Choice, int, PrefixHit]]:
        """Return (forecast, blocks, hit) for each holder of more than is here, best first.

        Of those that are about as good as the best one, the one that comes first in `hits` does: see EQUAL_SHARE.
        """
        ranked: list[tuple[Choice, int, PrefixHit]] = []
        for hit in hits:
            count = min(_device_blocks(hit), end_block) - first_block
            if count > 0:
                choice = self._forecaster.compare(hit.worker, count * self._block_tokens, count * self._block_bytes)
                ranked.append((choice, count, hit))
        if self._settings.pull == "always":
            ranked.sort(key=lambda entry: (entry[1], entry[0].gain_s), reverse=True)
        else:
            ranked.sort(key=lambda entry: (entry[0].gain_s, entry[1]), reverse=True)
        if len(ranked) > 1:
            _prefer_first(ranked, hits)
        return ranked


def _prefer_first(ranked: list[tuple[Choice, int, PrefixHit]], hits: Sequence[PrefixHit]) -> None:
    """Put that holder in front which comes first in `hits`, of those about as good as the best one."""
    best, count, _ = ranked[0]
    least_s = best.gain_s - EQUAL_SHARE * best.pull_s
    equal = [hit for choice, blocks, hit in ranked if blocks == count and choice.gain_s >= least_s]
    first = next(hit for hit in hits if any(hit is one for one in equal))
    place = next(number for number, entry in enumerate(ranked) if entry[2] is first)
    ranked.insert(0, ranked.pop(place))


def _device_blocks(hit: PrefixHit) -> int:
    """Return how many leading blocks lie in device memory: other tiers cannot be pulled from yet."""
    for index, location in enumerate(hit.locations):
        if location.tier is not Tier.DEVICE:
            return index
    return len(hit.locations)


def _source(hit: PrefixHit, first_block: int, count: int) -> PullSource:
    locations = hit.locations[first_block : first_block + count]
    slots = np.fromiter((location.slot for location in locations), dtype=np.int64, count=count)
    generations = np.fromiter((location.generation for location in locations), dtype=np.uint64, count=count)
    return PullSource(hit.worker, hit.incarnation, slots, generations)
