"""The kinds of engines that stages run with, and how such engines are started."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_check.sizes import Device
from benchmarks.harness import model_recipe
from benchmarks.harness.drafter import ensure_drafter
from benchmarks.harness.model_weights import WINDOW_TOKENS

ROOT = Path(__file__).resolve().parents[2]
LLAVA_PATH = str(ROOT / "tests/support/llava_cpu")
"""Lets vLLM load LLaVA where torchvision is not installed."""

BLOCK_TOKENS: Mapping[Device, int] = {"cuda": 16, "cpu": 32}
"""Of a block, where a kind has no other size on a GPU."""

NO_HYBRID = ("--disable-hybrid-kv-cache-manager",)
FP8 = ("--kv-cache-dtype", "fp8")
DRAFTS = 3
"""That a drafter makes at a time."""


class EngineKind(NamedTuple):
    """What sets the engines of a pair apart from those that vLLM starts by default."""

    model: model_recipe.Kind = "qwen3"
    arguments: tuple[str, ...] = ()
    """More of vLLM's."""
    settings: Mapping[str, str] = {}
    """More of the connector's."""
    few_blocks: bool = False
    """Whether the KV cache holds less than the torture's documents."""
    groups: int = 1
    """KV cache groups: each token takes a place in all of them."""
    gpu_block_tokens: int | None = None
    """Tokens of a block on a GPU where the kernels want another size than the default."""
    drafter: str = ""
    """vLLM's name for the kind of drafter with KV of its own, if there is one."""
    adapter: bool = False
    """Whether requests are for a LoRA adapter, which each engine reads from another path."""
    on_cpu: bool = True
    """Whether CPU engines run it."""

    def block_tokens(self, device: Device) -> int:
        of_its_own = self.gpu_block_tokens if device == "cuda" else None
        return of_its_own or BLOCK_TOKENS[device]

    def blocks(self, device: Device, count: int) -> int | None:
        """Return how many blocks are as much KV cache as `count` of the default size; None: as many as fit."""
        if not self.few_blocks:
            return None
        return self.groups * count * BLOCK_TOKENS[device] // self.block_tokens(device)

    def held_back(self, device: Device) -> int:
        """Return how many tokens at the end of what is found are computed all the same."""
        return self.block_tokens(device) if self.drafter in ("eagle", "mtp") else 0

    def window_blocks(self, device: Device) -> int:
        """Return how many blocks of a prompt are published a second time, in a group with windows."""
        return -(-(WINDOW_TOKENS - 1) // self.block_tokens(device)) if self.groups > 1 else 0

    def arguments_for(self, model: Path) -> tuple[str, ...]:
        """Return more of vLLM's arguments for a model's folder."""
        if not self.drafter:
            return self.arguments
        options = {"method": self.drafter, "num_speculative_tokens": DRAFTS}
        if self.drafter != "mtp":  # which is a part of the model
            drafter = ensure_drafter(model) if self.drafter == "eagle" else model  # whose drafts are all right
            options["model"] = str(drafter)
        return (*self.arguments, "--no-async-scheduling", "--speculative-config", json.dumps(options))

    def environment(self) -> dict[str, str]:
        """Return more of the environment of an engine."""
        if self.model != "images":
            return {}
        return {"PYTHONPATH": os.pathsep.join(filter(None, [LLAVA_PATH, str(ROOT), os.environ.get("PYTHONPATH")]))}


KINDS = {
    "mla": EngineKind("mla", few_blocks=True, gpu_block_tokens=64, on_cpu=False),
    "window": EngineKind("window", NO_HYBRID, few_blocks=True),
    "hybrid": EngineKind("window", few_blocks=True, groups=2),
    "fp8": EngineKind(arguments=FP8, few_blocks=True),
    "window-fp8": EngineKind("window-fp8", (*NO_HYBRID, *FP8), few_blocks=True),
    "eagle": EngineKind(few_blocks=True, drafter="eagle"),
    "draft-model": EngineKind(few_blocks=True, drafter="draft_model"),
    "mtp": EngineKind("mtp", few_blocks=True, drafter="mtp"),
    "adapter": EngineKind(few_blocks=True, adapter=True),
    "images": EngineKind("images", few_blocks=True),
}
"""One kind of model each, in the order in which their stages run: MLA; windows without and with the hybrid KV cache
manager; KV in FP8 without scales and with a checkpoint's; drafters with KV of their own; a LoRA adapter; images."""

ENGINES = {
    "block-major": EngineKind(),
    "engine-layout": EngineKind(settings={"kv_layout": "engine"}),
    "small-kv": EngineKind(few_blocks=True),
    **KINDS,
}
"""As they are by default, in vLLM's own layout, with a KV cache that is too small, and those of the kinds of models."""


def chosen_kinds(names: str) -> list[str]:
    """Return the kinds of models in a list with commas; "all" for all of them.

    Raises ValueError for a name that is unknown.
    """
    asked = list(KINDS) if names == "all" else names.split(",")
    if unknown := [name for name in asked if name not in KINDS]:
        raise ValueError(f"kinds: expected all, or some of {', '.join(KINDS)}, got {', '.join(unknown)}")
    return [name for name in KINDS if name in asked]
