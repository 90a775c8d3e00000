"""Keeps the ranks in the namespace of the weights that they compute with. Owns the scheduler's way to the ranks, and so
learns what LoRA adapters they load.

    doubt, lost_step          --> not `certain`: nothing is published
    settle (before each step) --> the ranks read their weights; certain again, here or, after `move`, elsewhere

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ghostcacher_connector.engines.common.weight_watch import WeightWatch
from ghostcacher_connector.engines.vllm.messages import RankHandshake
from ghostcacher_connector.engines.vllm.rank_calls import RankCalls
from ghostcacher_connector.engines.vllm.scheduling.adapters import AdapterBook
from ghostcacher_connector.identity.fingerprint import private_value
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.worker.registration import Introduction

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.executor.abstract import Executor

logger = logging.getLogger(__name__)


class WeightEpochs:
    """See the module's docstring. Nothing is read before `begin`."""

    def __init__(self, executor: Executor, *, has_all_experts: bool, adapters: AdapterBook) -> None:
        """Watch the calls to the ranks from now on.

        adapters: told of the LoRA adapters that the ranks load.
        has_all_experts: whether the ranks hold all the weights that they compute with. A data-parallel rank of a
            mixture of experts computes with experts that only others hold, and what those hold now cannot be read here:
            its weights are never known to be the same as before, or as another worker's.
        """
        self._calls = RankCalls(executor, self.doubt, self._adapter_loaded)
        self._adapters = adapters
        self._has_all_experts = has_all_experts
        self._weights: WeightWatch | None = None
        self._moved_at = 0
        self._lost_step = False

    def introduce(self) -> list[RankHandshake]:
        """Return who the ranks are, in order of rank. Raises whatever the executor does."""
        return self._calls.introduce()

    def begin(self, recorder: Recorder, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the weights that the ranks were started with."""
        self._weights = WeightWatch(self._read, recorder, clock)
        self._read_adapters()  # from now on, they tell with each step what they compute it with

    @property
    def certain(self) -> bool:
        """Whether the ranks compute with the weights of their namespace, and have their generations right."""
        return self._weights is not None and self._weights.doubt is None

    def doubt(self, why: str) -> None:
        """Note what may change the weights, before it does."""
        if self._weights is not None:
            self._weights.may_have_changed(why)

    def lost_step(self, step: int) -> None:
        """Note a rank's report of this step that it missed an earlier one; a move makes good what was missed before."""
        if step > self._moved_at:
            self._lost_step = True
            self.doubt("a rank missed a step and can no longer guarantee its generations")

    def settle(self) -> bool:
        """Know the weights before the next step computes with them; return whether the ranks are to `move`."""
        if self._weights is None or not self._weights.due:
            return False
        return self._weights.settle() or self._lost_step

    def move(self, step: int) -> list[Introduction]:
        """Have every rank become another incarnation, in the namespace of its weights; return who they are then.

        step: the last one before the move.
        Raises whatever the executor does.
        """
        assert self._weights is not None
        introductions = self._calls.move(self._weights.epoch)
        self._moved_at, self._lost_step = step, False
        return introductions

    def _adapter_loaded(self, lora: LoRARequest) -> None:
        """Know an adapter before the first request for it, so that this one finds what others computed with it."""
        if self._weights is not None:
            self._adapters.loaded(lora, self._read_adapters())

    def _read_adapters(self) -> list[dict[int, bytes]]:
        try:
            return self._calls.read_adapters()
        except Exception:
            logger.exception("the ranks do not say what LoRA adapters they have: each is shared from its first step on")
            return [{}]

    def _read(self) -> list[str]:
        return self._calls.read_weights() if self._has_all_experts else [private_value()]
