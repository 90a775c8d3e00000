"""Learns from the steps how fast this engine computes prompts, and decodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.step_times import StepClock

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class PrefillMeter:
    """Times one engine's steps, and tells its forecaster. Called on the scheduler's thread."""

    def __init__(self, forecaster: Forecaster, recorder: Recorder, clock: Callable[[], float]) -> None:
        self._forecaster = forecaster
        self._recorder = recorder
        self._times = StepClock(clock)

    def scheduled(self, step: int, output: SchedulerOutput) -> None:
        """A step has been scheduled, and is about to run."""
        prompt_tokens = _prompt_tokens(output)
        self._times.scheduled(step, prompt_tokens, 0 if prompt_tokens else len(output.num_scheduled_tokens))

    def done(self, step: int) -> None:
        """Every rank has carried out this step."""
        if (observed := self._times.done(step)) is None:
            return
        if not observed.prompt_tokens:
            self._forecaster.decode_times.observe(observed.decoding, observed.seconds)
        elif (ratio := self._forecaster.observe_step(observed.prompt_tokens, observed.seconds)) is not None:
            self._recorder.observe("gc_prefill_forecast_ratio", ratio)


def _prompt_tokens(output: SchedulerOutput) -> int:
    """Count the prompt tokens of a step, near enough: requests that compute more than one token are prefilling."""
    if output.total_num_scheduled_tokens == len(output.num_scheduled_tokens):
        return 0  # as in most steps, however many requests there are
    return sum(count for count in output.num_scheduled_tokens.values() if count > 1)
