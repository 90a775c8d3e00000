"""Knows how fast each engine computes prompts and decodes: by its own measurements, and by those of its equals.

Decoding is load. A decode step takes a fixed time, for reading the weights, and some more for each request in the
batch. So one more request delays what comes after it at that worker: the steps of prompts, which decode as well, and
each token of all answers. Workers report what they measured of their steps; a guess stands in for what they do not.
"""

from __future__ import annotations

from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_router.signals.equal_engines import TypicalEngine, shrunk

PREFILL_TOKENS_PER_S_GUESS = 10_000.0
"""Used while no engine reports a rate: a mid-size model on one accelerator. Among such workers only ratios matter."""

MS_PER_TOKEN_GUESS = 1e3 / PREFILL_TOKENS_PER_S_GUESS

RATE_NOISE = 1.1
"""Ratio to the typical engine that noise explains in a rate that an engine measured lately: its average is of a few
steps, and no two steps are alike."""

STALE_NOISE = 2.0
"""The same for a calibration, for a rate of long ago, and for decode times, which depend on how long the contexts are.
Two equal engines were seen to report calibrated rates that differed by 1.8. Hardware of one namespace hardly differs by
more, and what does not is measured as soon as the worker gets prompts, which it will, being taken for a typical one."""

DECODE_TOKENS = 5.0
"""Prompt tokens that are computed in the time that one more request adds to a decode step, until that is measured: it
reads its KV, and is bound by memory, where a prompt's token is bound by computing."""

ANSWER_TOKENS_GUESS = 256.0
ANSWER_TOKENS_MIN, ANSWER_TOKENS_MAX = 16.0, 4096.0
"""Tokens of an answer, until this router has seen some, and the bounds of what it learns."""
WATCHED_WEIGHT = 0.02
"""Share of the newest prompt in the rate of engines that report nothing. Some are computed together, and answered at
once: only many of them say something."""

WATCHED_STEP = 0.05
"""So far that rate has to move before it counts as another one: whatever is known of each of these engines is then
worked out anew, and what they have in common tells none of them from the others."""

ANSWER_WEIGHT = 0.05
"""Share of the newest answer in the mean."""


class _Told(NamedTuple):
    """What a worker reports of its speed. Of one that reports nothing all is None."""

    namespace: str | None
    ms_per_token: float | None
    stale: bool
    """Whether the rate is a calibration, or of long ago."""
    decode_step_ms: float | None
    """A typical step that only decodes."""
    decode_request_ms: float | None
    """What one more request adds to it."""


NOTHING = _Told(None, None, True, None, None)


class _Equals:
    """The engines of one namespace, which should be equal."""

    __slots__ = ("decode_request_ms", "ms_per_token")

    def __init__(self) -> None:
        self.ms_per_token, self.decode_request_ms = TypicalEngine(), TypicalEngine()


class EngineSpeeds:
    """The speeds of all engines. On the event loop only."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}
        self._equals: dict[str, _Equals] = {}
        self._all = TypicalEngine(MS_PER_TOKEN_GUESS)
        self._watched_tokens = self._watched_s = 0.0
        """Of prompts that engines have computed which report nothing: their tokens, and the time that it took."""
        self._watched_ms = 0.0
        """What they take for a token, up to `WATCHED_STEP`; 0 while their answers tell nothing."""
        self.version = 0
        """Changes whenever an answer for a worker that has not reported anew may be another one."""
        self.answer_tokens = ANSWER_TOKENS_GUESS
        """The expected length of an answer."""

    def __repr__(self) -> str:
        return f"EngineSpeeds(engines={len(self._told)}, answer_tokens={self.answer_tokens:.0f})"

    def report(self, worker: str, namespace: str | None, load: LoadReport | None) -> None:
        """Take what a worker reports; None when it reports no more."""
        told = NOTHING
        if load is not None:
            rate, request_s = load.prefill_tokens_per_s, load.decode_request_s
            told = _Told(
                namespace,
                1e3 / rate if rate else None,
                load.prefill_rate_stale,
                load.decode_step_s * 1e3 or None,
                request_s * 1e3 or None,
            )
        self._replace(worker, told)

    def forget(self, worker: str) -> None:
        """Forget a worker that is gone."""
        self._replace(worker, NOTHING)
        self._told.pop(worker, None)

    @property
    def typical_ms_per_token(self) -> float:
        """The median of what engines report of the prefill time of a prompt token; a guess while none does."""
        return self._all.figure or MS_PER_TOKEN_GUESS

    def ms_per_token(self, worker: str) -> float:
        """Return the prefill time of one prompt token at a worker."""
        told = self._told.get(worker, NOTHING)
        # Answers that have taken no measurable time tell no rate.
        if told.ms_per_token is None and self._all.is_empty and self._watched_ms:
            return self._watched_ms
        if told.ms_per_token is None:
            return self.typical_ms_per_token
        equals = None if told.namespace is None else self._equals.get(told.namespace)
        typical = None if equals is None else equals.ms_per_token.figure
        return shrunk(told.ms_per_token, typical, STALE_NOISE if told.stale else RATE_NOISE)

    def decode_request_ms(self, worker: str, ms_per_token: float) -> float:
        """Return what one more request adds to each decode step at a worker. ms_per_token: of that worker."""
        told = self._told.get(worker, NOTHING)
        equals = None if told.namespace is None else self._equals.get(told.namespace)
        typical = None if equals is None else equals.decode_request_ms.figure
        figure = typical if told.decode_request_ms is None else told.decode_request_ms
        return DECODE_TOKENS * ms_per_token if figure is None else shrunk(figure, typical, STALE_NOISE)

    def answered(self, worker: str, decoding_s: float) -> None:
        """Learn from an answer that ended well, and took so long after its first token."""
        step_ms = self._told.get(worker, NOTHING).decode_step_ms
        if step_ms is not None and decoding_s > 0.0:
            tokens = max(ANSWER_TOKENS_MIN, min(ANSWER_TOKENS_MAX, decoding_s * 1e3 / step_ms))
            self.answer_tokens += ANSWER_WEIGHT * (tokens - self.answer_tokens)

    def computed(self, tokens: int, seconds: float) -> None:
        """Learn from a prompt of a worker that reports nothing. All of these count as equal: one clock is too few."""
        keep = 1.0 - WATCHED_WEIGHT
        self._watched_tokens = self._watched_tokens * keep + tokens
        self._watched_s = self._watched_s * keep + max(0.0, seconds)
        watched_ms = self._watched_s * 1e3 / self._watched_tokens
        if abs(watched_ms - self._watched_ms) > WATCHED_STEP * self._watched_ms:
            self._watched_ms = watched_ms
            self.version += 1

    def check_invariants(self) -> None:
        """Assert that what is typical is made of what was told."""
        for namespace, equals in self._equals.items():
            told = [one for one in self._told.values() if one.namespace == namespace]
            equals.ms_per_token.check_invariants([one.ms_per_token for one in told if one.ms_per_token])
            equals.decode_request_ms.check_invariants([one.decode_request_ms for one in told if one.decode_request_ms])
        self._all.check_invariants([one.ms_per_token for one in self._told.values() if one.ms_per_token])

    def _replace(self, worker: str, told: _Told) -> None:
        before = self._told.get(worker, NOTHING)
        if told == before:
            return
        self._told[worker] = told
        moved = self._all.replace(before.ms_per_token, told.ms_per_token)
        if before.namespace == told.namespace:
            moved |= self._replace_among_equals(told.namespace, before, told)
        else:
            moved |= self._replace_among_equals(before.namespace, before, NOTHING)
            moved |= self._replace_among_equals(told.namespace, NOTHING, told)
        self.version += moved

    def _replace_among_equals(self, namespace: str | None, before: _Told, after: _Told) -> bool:
        """Replace what one engine of a namespace told; return whether the typical one changes."""
        if namespace is None:
            return False
        equals = self._equals.setdefault(namespace, _Equals())
        moved = equals.ms_per_token.replace(before.ms_per_token, after.ms_per_token)
        moved |= equals.decode_request_ms.replace(before.decode_request_ms, after.decode_request_ms)
        if after is NOTHING and equals.ms_per_token.is_empty and equals.decode_request_ms.is_empty:
            del self._equals[namespace]
        return moved
