"""Pull or compute? Forecasts from measured rates, and the rates themselves.

    pull    = wait for the pulls ahead + fixed cost + round trip + bytes / measured bytes per second of this source
    compute = tokens / measured prefill tokens per second of this engine

A source is a worker's tier; the worker itself is one, too, with its lower tiers.

The prefill rate starts from a calibration, a source's rate from a guess. Both follow what is observed, as exponential
averages, since a machine's speed drifts with its load. This is the only place where a peer's rate is kept. The clock is
injected; nothing here does I/O.

A rate that is too high is corrected by what it attracts. One that is too low is not: routers send long prompts
elsewhere, readers pull from others. So what may have been no more than a bad moment is believed for a while only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

from ghostcacher_connector.core.types import Tier
from ghostcacher_connector.pull.step_times import DecodeTimes

PULL_FIXED_S = 0.004
"""Two scheduler steps and a change of threads: the least that an asynchronous load costs an engine."""

PEER_BYTES_PER_S_GUESS = 1e9
"""Before the first measurement: a 10 Gbit/s link, the slowest one on which sharing is usually deployed."""

OWN_BYTES_PER_S_GUESS = 4e9
"""The same for what lies in this worker's own host memory: half of a PCIe 3.0 link, or one core that copies."""

OBJECT_BYTES_PER_S_GUESS = 5e8
"""The same for what is read from objects into its host memory: a disk, or an object store over 10 Gbit/s."""

RATE_TTL_S = 30.0
"""A low rate that nothing has confirmed for so long is no longer held against a peer, or this engine: what is avoided
because of one slow pull, or step, would otherwise never be measured again."""

WEIGHT = 0.3
"""Share of the newest observation in an average: half of an old rate is forgotten after two observations."""

STEP_TOKENS_MIN = 512
"""Steps with fewer tokens, or with less than half of what one may have, are bound by reading the weights and say
nothing about the prefill rate."""

SLOW_WEIGHT = 0.03
"""Share of the newest step in the rate that an engine is taken to be capable of: the few slow steps of one bad prompt,
such as the first one, which pays for what is compiled and paged in, leave nine tenths of it."""

FASTER_MAX = 4.0
"""No step counts as more than so many times faster than expected: one whose predecessor's end was seen late seems to
have taken no time."""

PULL_BYTES_MIN = 64 << 10
"""Pulls smaller than this are bound by latency and say nothing about the rate."""


class Choice(NamedTuple):
    """What pulling and computing the same blocks is forecast to cost, in seconds."""

    wait_s: float
    """Until the pull is carried out alone: others are ahead of it, on the way to the same peer or on every thread."""
    pull_s: float
    """Of the pull alone."""
    compute_s: float

    @property
    def gain_s(self) -> float:
        """What pulling saves; negative when computing is faster."""
        return self.compute_s - self.wait_s - self.pull_s

    @property
    def pull(self) -> bool:
        return self.gain_s > 0


class _Ahead(NamedTuple):
    """A pull that was ordered and is not over."""

    worker: str
    """The peer that it is asked of first."""
    ends_at: float
    """When it is forecast to be over, on the forecaster's clock."""


def blend(old: float | None, new: float) -> float:
    """Return the exponential average; the first observation stands for itself."""
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new


class _Rate(NamedTuple):
    """How fast pulls from a peer were."""

    bytes_per_s: float
    """The exponential average."""
    at: float
    """When the newest pull that counts ended, on the forecaster's clock."""


class PrefillRate(NamedTuple):
    """How fast an engine computes prompts."""

    tokens_per_s: float
    stale: bool
    """No step has told it lately: it is the start-up calibration, or what the engine was capable of long ago."""


class Forecaster:
    """The running estimates of one engine."""

    def __init__(
        self,
        prefill_tokens_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        step_tokens_max: int = 2 * STEP_TOKENS_MIN,
        pull_threads: int = 1,
        own_worker: str = "",
    ) -> None:
        """prefill_tokens_per_s: the start-up calibration. step_tokens_max: that the engine computes in one step.

        pull_threads: pulls that are carried out at the same time. own_worker: the name of this worker; loads from its
        own lower tiers are pulls from it.
        """
        assert prefill_tokens_per_s > 0
        self._clock = clock
        self._step_tokens_min = max(1, min(STEP_TOKENS_MIN, step_tokens_max // 2))
        # What the engine can do, in the long run; and what it does now, as of its last step that tells.
        self._capable = prefill_tokens_per_s
        self._observed: float | None = None
        self._observed_at = 0.0
        self._own_worker = own_worker
        self._rates: dict[tuple[str, Tier], _Rate] = {}
        self._round_trips: dict[str, float] = {}
        self._pull_threads = pull_threads
        self.decode_times = DecodeTimes()
        """Of the steps that compute no prompt."""
        self._ahead: dict[str, _Ahead] = {}

    def __repr__(self) -> str:
        return f"Forecaster(prefill={self.prefill_tokens_per_s:.0f} tokens/s, sources={len(self._rates)})"

    @property
    def prefill_tokens_per_s(self) -> float:
        """May be read from any thread."""
        observed = self._observed
        if observed is None:
            return self._capable
        return max(observed, self._capable) if self._is_old() else observed

    @property
    def prefill_rate(self) -> PrefillRate:
        """The same rate, and whether it is stale. May be read from any thread."""
        return PrefillRate(self.prefill_tokens_per_s, self._observed is None or self._is_old())

    def observe_step(self, tokens: int, seconds: float) -> float | None:
        """Learn from a step that computed `tokens` prompt tokens; return its time divided by the forecast one.

        Returns None when the step was too short to tell.
        """
        if tokens < self._step_tokens_min or seconds <= 0:
            return None
        expected = self.prefill_tokens_per_s
        rate = min(tokens / seconds, FASTER_MAX * expected)
        self._observed = rate if self._observed is None or self._is_old() else blend(self._observed, rate)
        self._observed_at = self._clock()
        self._capable += SLOW_WEIGHT * (rate - self._capable)
        return seconds * expected / tokens

    def _is_old(self) -> bool:
        return self._clock() - self._observed_at > RATE_TTL_S

    def observe_pull(self, worker: str, pulled_bytes: int, seconds: float, tier: Tier = Tier.DEVICE) -> None:
        """Learn from a pull that ended well. The first one is blended, too: it pays for first touches of memory.

        tier: where most of the blocks lay.
        """
        if pulled_bytes >= PULL_BYTES_MIN and seconds > 0:
            rate = blend(self.bytes_per_s(worker, tier), pulled_bytes / seconds)
            self._rates[worker, tier] = _Rate(rate, self._clock())

    def observe_round_trips(self, round_trips: Mapping[str, float]) -> None:
        """Learn the round trips to peers, in seconds, which are measured when a peer is connected to."""
        self._round_trips.update(round_trips)

    def bytes_per_s(self, worker: str, tier: Tier = Tier.DEVICE) -> float:
        """Return the rate at which a pull from a worker's tier is forecast."""
        guess = OWN_BYTES_PER_S_GUESS if worker == self._own_worker else PEER_BYTES_PER_S_GUESS
        if tier is Tier.OBJECT:
            guess = OBJECT_BYTES_PER_S_GUESS
        rate = self._rates.get((worker, tier))
        if rate is None:
            return guess
        expired = self._clock() - rate.at > RATE_TTL_S
        return max(rate.bytes_per_s, guess) if expired else rate.bytes_per_s

    @property
    def typical_bytes_per_s(self) -> float:
        """The median of the peers' measured rates; 0.0 when there is none."""
        rates = [rate.bytes_per_s for (worker, _), rate in self._rates.items() if worker != self._own_worker]
        return median(rates) if rates else 0.0

    def compute_s(self, tokens: int) -> float:
        """Return the forecast time to compute `tokens` prompt tokens."""
        return tokens / self.prefill_tokens_per_s

    def compare(self, worker: str, tokens: int, pull_bytes: int, tier: Tier = Tier.DEVICE) -> Choice:
        """Forecast what it costs to pull `pull_bytes` from a worker's tier, and to compute the same `tokens`."""
        wait_s = max(0.0, self._starts_at(worker) - self._clock())
        return Choice(wait_s, self._pull_s(worker, pull_bytes, tier), self.compute_s(tokens))

    def ordered(self, pull_id: str, worker: str, pull_bytes: int, tier: Tier = Tier.DEVICE) -> None:
        """A pull is under way from now on: later ones wait for it, until `ended`."""
        starts_at = max(self._clock(), self._starts_at(worker))
        self._ahead[pull_id] = _Ahead(worker, starts_at + self._pull_s(worker, pull_bytes, tier))

    def ended(self, pull_id: str) -> None:
        """A pull that was ordered is over; others are ignored."""
        self._ahead.pop(pull_id, None)

    def _pull_s(self, worker: str, pull_bytes: int, tier: Tier) -> float:
        return PULL_FIXED_S + self._round_trips.get(worker, 0.0) + pull_bytes / self.bytes_per_s(worker, tier)

    def _starts_at(self, worker: str) -> float:
        """Return when a pull from a peer can be carried out alone: one link carries one after the other.

        Two at a time on one link are each about half as fast. What is overdue is taken to end now.
        """
        link = [ahead.ends_at for ahead in self._ahead.values() if ahead.worker == worker]
        threads = sorted((ahead.ends_at for ahead in self._ahead.values()), reverse=True)
        # With as many ahead as there are threads, the first one that ends frees a thread; each one more takes one.
        return max([*link, *threads[self._pull_threads - 1 : self._pull_threads]], default=0.0)
