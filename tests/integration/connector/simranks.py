"""The rank of a simulated engine as vLLM's engine core reaches it: by vLLM's executor, with a model that has weights.

What a forward pass writes depends on the model's weight, so that KV of other weights is seen at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from vllm.distributed.kv_transfer import kv_transfer_state
from vllm.lora.request import LoRARequest
from vllm.v1.executor.abstract import Executor
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.serial_utils import run_method

from ghostcacher_connector.engines.vllm.connector import GhostCacherConnector
from tests.integration.connector.simadapters import SimAdapters


class SimModel(torch.nn.Module):
    """A model of one weight, a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
        self.lora_manager = SimAdapters()


class SimRank:
    """What a method that is called on every rank sees: vLLM's worker."""

    def __init__(self, execute: Callable[[Any], ModelRunnerOutput]) -> None:
        self.execute_model = execute
        self.model = SimModel()

    @property
    def weight(self) -> int:
        return int(self.model.weight)

    def get_model(self) -> SimModel:
        return self.model

    def weight_with(self, lora: LoRARequest | None) -> Callable[[], int]:
        """Return what tells with what a step computes a request: the weight, and the adapter that vLLM has for it."""
        if lora is None:
            return lambda: self.weight
        return lambda: self.weight + self.model.lora_manager.weight(lora.lora_int_id)

    def load_adapters(self, wanted: Iterable[LoRARequest | None]) -> None:
        """Have the adapters that a step computes with."""
        for lora in wanted:
            if lora is not None:
                self.add_lora(lora)

    def add_lora(self, lora: LoRARequest) -> bool:
        return self.model.lora_manager.add(lora)

    def remove_lora(self, number: int) -> bool:
        return self.model.lora_manager.remove(number)

    def update_weights(self, weight: int) -> None:
        """Change the weight, as a worker extension of an RL stack does."""
        self.model.weight.fill_(weight)

    def ping(self) -> str:
        """Do nothing that concerns the weights; nobody can know that by the name."""
        return "pong"


class SimExecutor(Executor):
    """Calls one rank in this very process, each call behind the steps that were scheduled before it."""

    def __init__(
        self, config: Any, rank: SimRank, connector: GhostCacherConnector, catch_up: Callable[[], None]
    ) -> None:
        """catch_up: has the rank carry out the steps that are on their way to it."""
        self.rank = rank
        self._connector = connector
        self._catch_up = catch_up
        super().__init__(config)

    def _init_executor(self) -> None:
        """The rank is there."""

    def collective_rpc(  # type: ignore[override]
        self, method: Any, _timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: Any = None, **_: Any
    ) -> list[Any]:
        if method != "execute_model":
            self._catch_up()
        # A process has one connector of a rank; here are several ranks in one process.
        kv_transfer_state._KV_CONNECTOR_AGENT = self._connector
        try:
            return [run_method(self.rank, method, args, kwargs or {})]
        finally:
            kv_transfer_state._KV_CONNECTOR_AGENT = None

    def check_health(self) -> None:
        """It is healthy."""
