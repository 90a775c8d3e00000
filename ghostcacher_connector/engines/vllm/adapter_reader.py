"""What a rank's LoRA adapters hold, as one digest each: tells the KV of two adapters apart, whatever they are called.

vLLM names an adapter by what the client calls it and by the path that it was loaded from, and loads it again from there
when it was evicted meanwhile. So the digest is that of the tensors as vLLM has them, not of files that may have changed
since, and it is cryptographic: who may upload an adapter must not be able to make one that passes for another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ghostcacher_connector.engines.common.adapter_content import content_digest

logger = logging.getLogger(__name__)


class AdapterReader:
    """Reads the adapters of one rank: each once for as long as vLLM keeps it."""

    def __init__(self) -> None:
        self._model: torch.nn.Module | None = None
        self._known: dict[int, tuple[Any, bytes | None]] = {}

    def begin(self, model: torch.nn.Module) -> None:
        """Look at the adapters of this model from now on: vLLM keeps them with it."""
        self._model = model

    def digests(self, wanted: Iterable[int] | None = None) -> dict[int, bytes]:
        """Return the digests of adapters by vLLM's number of each, of those that are loaded and can be read.

        wanted: numbers of adapters; None: all that are loaded.
        """
        manager = getattr(self._model, "lora_manager", None)
        loaded: Mapping[int, Any] = manager.list_adapters() if manager is not None else {}
        modules = sorted(manager.modules) if manager is not None else []
        numbers = loaded if wanted is None else [number for number in wanted if number in loaded]
        self._known = {number: known for number, known in self._known.items() if number in loaded}
        digests = {number: self._digest(number, loaded[number], modules) for number in numbers}
        return {number: digest for number, digest in digests.items() if digest is not None}

    def _digest(self, number: int, adapter: Any, modules: list[str]) -> bytes | None:
        known = self._known.get(number)
        if known is None or known[0] is not adapter:
            known = self._known[number] = (adapter, _digest_or_none(adapter, modules))
        return known[1]


def adapter_digest(adapter: Any, modules: Iterable[str]) -> bytes:
    """Return the digest of an adapter. About 1 s for 1 GiB.

    adapter: vLLM's ``LoRAModel``, as it is when it has been added to the engine's. modules: names of those modules of
        the model that the engine lets adapters change; what an adapter has for others is not used.
    """
    layers = {name: vars(layer) for name, layer in adapter.loras.items()}
    whole = {name: vars(module) for name, module in getattr(adapter, "modules_to_save", {}).items()}  # from 0.31 on
    return content_digest([sorted(modules), adapter.rank, adapter.is_3d_lora_weight, layers, whole])


def _digest_or_none(adapter: Any, modules: list[str]) -> bytes | None:
    try:
        return adapter_digest(adapter, modules)
    except Exception:
        logger.exception("a LoRA adapter cannot be read: what is computed with it is not shared")
        return None
