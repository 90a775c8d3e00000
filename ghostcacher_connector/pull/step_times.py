"""Times an engine's steps: how long those take that compute prompts, and those that only decode.

A step that only decodes takes a fixed time, for reading the weights, and some more for each request in its batch. Both
are fitted to the steps of the last seconds by least squares, in which a step counts less the longer ago it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

STEPS_IN_FLIGHT_MAX = 1024
"""Far above any engine's own limit; bounds the memory in case outputs stop arriving."""

FORGOTTEN = 0.002
"""Share of what older steps count for that is forgotten at each step: half is gone after 350 steps, some seconds."""

STEPS_MIN = 32
"""Steps before which nothing is told of them: the first ones pay for what is compiled and paged in."""

WEIGHT_MIN = (1.0 - (1.0 - FORGOTTEN) ** STEPS_MIN) / FORGOTTEN
"""What so many steps count for."""

VARIANCE_MIN = 1.0
"""Batches have to vary by about a request either way: less does not tell what a request adds from noise."""

SLOWER_MAX = 4.0
"""No step counts as more than so many times longer than the mean: one that was held up says nothing of decoding."""


class StepTime(NamedTuple):
    """One step, and how long it took."""

    prompt_tokens: int
    """Prompt tokens that it computed."""
    decoding: int
    """Requests for which it decoded."""
    seconds: float


class StepClock:
    """Times the steps of an engine whose steps may overlap.

    A step that was scheduled while the one before it still ran has taken the time since that one's end.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: deque[tuple[int, float, int, int]] = deque(maxlen=STEPS_IN_FLIGHT_MAX)
        self._last_done = 0.0

    def scheduled(self, step: int, prompt_tokens: int, decoding: int) -> None:
        """A step is about to run. prompt_tokens, decoding: see StepTime."""
        self._running.append((step, self._clock(), prompt_tokens, decoding))

    def done(self, step: int) -> StepTime | None:
        """Every step up to this one is done; return the last one if its time can be told apart."""
        now, observed, count = self._clock(), None, 0
        while self._running and self._running[0][0] <= step:
            _, started, prompt_tokens, decoding = self._running.popleft()
            observed, count = StepTime(prompt_tokens, decoding, now - max(started, self._last_done)), count + 1
        if count:
            self._last_done = now
        return observed if count == 1 else None


class DecodeTimes:
    """How long an engine's steps take that only decode."""

    def __init__(self) -> None:
        # Sums over the steps, each with its weight: of 1, batch, seconds, batch squared, batch times seconds.
        self._weight = self._batch = self._seconds = self._batch_squared = self._batch_seconds = 0.0

    def __repr__(self) -> str:
        return f"DecodeTimes(step={self.step_s * 1e3:.2f} ms, request={self.request_s * 1e3:.3f} ms)"

    def observe(self, batch: int, seconds: float) -> None:
        """Learn from a step that decoded for `batch` requests and computed no prompt."""
        if batch < 1 or seconds <= 0:
            return
        if self._weight:
            seconds = min(seconds, SLOWER_MAX * self._seconds / self._weight)
        kept = 1.0 - FORGOTTEN
        self._weight = kept * self._weight + 1.0
        self._batch = kept * self._batch + batch
        self._seconds = kept * self._seconds + seconds
        self._batch_squared = kept * self._batch_squared + batch * batch
        self._batch_seconds = kept * self._batch_seconds + batch * seconds

    @property
    def step_s(self) -> float:
        """The mean of the steps; 0.0 before there were enough."""
        return self._seconds / self._weight if self._weight > WEIGHT_MIN else 0.0

    @property
    def request_s(self) -> float:
        """What one more request adds to a step; 0.0 while that cannot be told, or is not seen to be anything."""
        if self._weight <= WEIGHT_MIN:
            return 0.0
        batch, seconds = self._batch / self._weight, self._seconds / self._weight
        variance = self._batch_squared / self._weight - batch * batch
        if variance < VARIANCE_MIN:
            return 0.0
        added = (self._batch_seconds / self._weight - batch * seconds) / variance
        # A step cannot take less than nothing when the batch is empty.
        return min(max(0.0, added), seconds / batch)
