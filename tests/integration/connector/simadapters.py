"""LoRA adapters of a simulated rank: vLLM's own classes of what is loaded, and its manager's rules of when.

An adapter is a folder with a file that holds one whole number, 0 without one; what a step computes with it depends on
that number.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.request import LoRARequest

from ghostcacher_connector.engines.vllm.adapter_reader import adapter_digest

MODULE = "layer"
FILE = "number"
WEIGHT = 1_000
"""So much of a model's weight is one in an adapter's number."""


class SimAdapters:
    """What vLLM keeps with a model as ``lora_manager``: a bounded number of adapters, the least recently used go."""

    def __init__(self, capacity: int = 4) -> None:
        self.capacity = capacity
        self.modules = {MODULE: None}
        self.loads = 0
        self._registered: OrderedDict[int, LoRAModel] = OrderedDict()

    def list_adapters(self) -> dict[int, LoRAModel]:
        return dict(self._registered)

    def add(self, request: LoRARequest) -> bool:
        """Load an adapter unless it is there; one that is to be reloaded in place is read again each time."""
        number = request.lora_int_id
        if number not in self._registered or request.load_inplace:
            self.loads += 1
            file = Path(request.lora_path) / FILE
            adapter = made_of(number, int(file.read_text()) if file.exists() else 0)
            self._registered.pop(number, None)
            if len(self._registered) >= self.capacity:
                self._registered.popitem(last=False)
            self._registered[number] = adapter
        self._registered.move_to_end(number)
        return True

    def remove(self, number: int) -> bool:
        return self._registered.pop(number, None) is not None

    def weight(self, number: int) -> int:
        """Return what an adapter that is loaded adds to the model's weight."""
        return WEIGHT * int(self._registered[number].loras[MODULE].lora_a[0, 0])


def made_of(number: int, content: int) -> LoRAModel:
    """Return vLLM's object of an adapter with this content. number: vLLM's of it."""
    a, b = torch.full((1, 4), float(content)), torch.ones(4, 1)
    return LoRAModel(number, rank=1, loras={MODULE: LoRALayerWeights(MODULE, 1, 1, a, b)})


def digest_of(content: int) -> bytes:
    """Return the digest of an adapter with this content."""
    return adapter_digest(made_of(1, content), [MODULE])


def write_adapter(folder: Path, content: int) -> str:
    """Write an adapter, or another one in its place; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(str(content))
    return str(folder)
