"""Pull or compute? A forecast from measured rates, and the rates themselves.

    pull    = fixed cost + round trip + bytes / measured bytes per second of this peer
    compute = tokens / measured prefill tokens per second of this engine

Both rates start from a calibration (a matrix product; a timed self-pull) and follow what is observed, as exponential
averages: a machine's speed drifts with its load. Time is injected; no I/O in here.

A rate that is too high is put right by what it attracts. One that is too low is not: routers send long prompts
elsewhere, readers pull from others. So what may have been no more than a bad moment is believed for a while only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

PULL_FIXED_S = 0.004
"""Two scheduler steps and a thread hand-over, the least that an asynchronous load costs an engine."""

PEER_BYTES_PER_S_GUESS = 1e9
"""Before the first measurement: a 10 Gbit/s link, the slowest one on which sharing is usually deployed."""

RATE_TTL_S = 30.0
"""A rate that nothing has confirmed for so long is no longer held against a peer, or this engine: what is avoided
because of one slow pull, or step, would otherwise never be measured again."""

WEIGHT = 0.3
"""Share of the newest observation: half of an old rate is forgotten after two observations."""

STEPS_IN_FLIGHT_MAX = 1024
"""Far above any engine's own limit; bounds the memory should outputs stop arriving."""

STEP_TOKENS_MIN = 512
"""Steps with fewer tokens, or with less than half of what one may have, are bound by reading the weights and say
nothing about the prefill rate."""

SLOW_WEIGHT = 0.03
"""Share of the newest step in what an engine is held to be able to do: the few slow ones of one bad prompt, such as the
first, which pays for what is compiled and paged in, leave nine tenths of it."""

FASTER_MAX = 4.0
"""No step counts as more than so many times faster than was expected: one whose predecessor's end was seen late seems
to have taken no time."""

PULL_BYTES_MIN = 64 << 10
"""Pulls smaller than this are bound by latency and say nothing about the rate."""


class Choice(NamedTuple):
    """What pulling and computing the same blocks would cost, in seconds."""

    pull_s: float
    compute_s: float

    @property
    def gain_s(self) -> float:
        """What pulling saves; negative when computing is faster."""
        return self.compute_s - self.pull_s

    @property
    def pull(self) -> bool:
        return self.pull_s < self.compute_s


def blend(old: float | None, new: float) -> float:
    """Return the exponential average; the first observation stands for itself."""
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new


class _Link(NamedTuple):
    """What is known of the way to a peer. rate: bytes/s, None before the first measurement; at: of the last pull."""

    rate: float | None
    round_trip_s: float
    at: float


class Forecaster:
    """The running estimates of one engine."""

    def __init__(
        self,
        prefill_tokens_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        step_tokens_max: int = 2 * STEP_TOKENS_MIN,
    ) -> None:
        """prefill_tokens_per_s: the start-up calibration. step_tokens_max: that the engine computes in one step."""
        assert prefill_tokens_per_s > 0
        self._clock = clock
        self._step_tokens_min = max(1, min(STEP_TOKENS_MIN, step_tokens_max // 2))
        # What the engine can do, in the long run; and what it does now, as of its last step that tells.
        self._capable = prefill_tokens_per_s
        self._observed: float | None = None
        self._observed_at = 0.0
        self._peers: dict[str, _Link] = {}

    def __repr__(self) -> str:
        return f"Forecaster(prefill={self.prefill_tokens_per_s:.0f} tokens/s, peers={len(self._peers)})"

    @property
    def prefill_tokens_per_s(self) -> float:
        """May be read from any thread."""
        observed = self._observed
        if observed is None:
            return self._capable
        return max(observed, self._capable) if self._is_old() else observed

    def observe_step(self, tokens: int, seconds: float) -> float | None:
        """Take note of a step that computed `tokens` prompt tokens; return its time over the forecast one.

        None: it was too short to tell.
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

    def observe_pull(self, worker: str, pulled_bytes: int, seconds: float) -> None:
        """Take note of a pull that ended well. The first one is blended, too: it pays for first touches of memory."""
        if pulled_bytes >= PULL_BYTES_MIN and seconds > 0:
            rate = blend(self.bytes_per_s(worker), pulled_bytes / seconds)
            self._peers[worker] = _Link(rate, self._link(worker).round_trip_s, self._clock())

    def observe_links(self, links: Mapping[str, tuple[float, float]]) -> None:
        """Take over rates (bytes/s, 0 when unknown) and round trips that were measured by probes; pulls' rates win."""
        for worker, (rate, round_trip_s) in links.items():
            known = self._link(worker)
            first = rate if known.rate is None and rate > 0 else known.rate
            at = self._clock() if known.rate is None else known.at
            self._peers[worker] = _Link(first, round_trip_s, at)

    def bytes_per_s(self, worker: str) -> float:
        link = self._link(worker)
        if link.rate is None:
            return PEER_BYTES_PER_S_GUESS
        expired = self._clock() - link.at > RATE_TTL_S
        return max(link.rate, PEER_BYTES_PER_S_GUESS) if expired else link.rate

    @property
    def typical_bytes_per_s(self) -> float:
        """The median of the peers' measured rates; 0.0 when there is none."""
        rates = [link.rate for link in self._peers.values() if link.rate is not None]
        return median(rates) if rates else 0.0

    def _link(self, worker: str) -> _Link:
        return self._peers.get(worker, _Link(None, 0.0, 0.0))

    def compute_s(self, tokens: int) -> float:
        """Return the forecast time to compute `tokens` prompt tokens."""
        return tokens / self.prefill_tokens_per_s

    def compare(self, worker: str, tokens: int, pull_bytes: int) -> Choice:
        """Forecast what it costs to pull `pull_bytes` from a peer, and to compute the same `tokens`."""
        round_trip_s = self._link(worker).round_trip_s
        return Choice(PULL_FIXED_S + round_trip_s + pull_bytes / self.bytes_per_s(worker), self.compute_s(tokens))


class PrefillClock:
    """Times the steps of an engine whose steps may overlap.

    A step that was scheduled while its predecessor still ran has cost the time since that one's end.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: deque[tuple[int, float, int]] = deque(maxlen=STEPS_IN_FLIGHT_MAX)
        self._last_done = 0.0

    def scheduled(self, step: int, tokens: int) -> None:
        """A step that computes `tokens` prompt tokens is about to run."""
        self._running.append((step, self._clock(), tokens))

    def done(self, step: int) -> tuple[int, float] | None:
        """Every step up to this one is done; return the last one's (tokens, seconds) if its time is its own."""
        now, observed, count = self._clock(), None, 0
        while self._running and self._running[0][0] <= step:
            _, started, tokens = self._running.popleft()
            observed, count = (tokens, now - max(started, self._last_done)), count + 1
        if count:
            self._last_done = now
        return observed if count == 1 else None
