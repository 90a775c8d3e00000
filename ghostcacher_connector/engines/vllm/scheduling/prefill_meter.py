"""Learns from the steps how fast this engine computes prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster, PrefillClock

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class PrefillMeter:
    """Times one engine's steps, and tells its forecaster. Called on the scheduler's thread."""

    def __init__(self, forecaster: Forecaster, recorder: Recorder, clock: Callable[[], float]) -> None:
        self._forecaster = forecaster
        self._recorder = recorder
        self._times = PrefillClock(clock)

    def scheduled(self, step: int, output: SchedulerOutput) -> None:
        """A step has been scheduled, and is about to run."""
        self._times.scheduled(step, _prompt_tokens(output))

    def done(self, step: int) -> None:
        """Every rank has carried out this step."""
        if (observed := self._times.done(step)) is None:
            return
        if (ratio := self._forecaster.observe_step(*observed)) is not None:
            self._recorder.observe("gc_prefill_forecast_ratio", ratio)


def _prompt_tokens(output: SchedulerOutput) -> int:
    """Count the prompt tokens of a step, near enough: requests that compute more than one token are prefilling."""
    if output.total_num_scheduled_tokens == len(output.num_scheduled_tokens):
        return 0  # as in most steps, however many requests there are
    return sum(count for count in output.num_scheduled_tokens.values() if count > 1)
