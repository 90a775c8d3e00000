"""What determines a random model: its size, its kind, its seed."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import msgspec

Size = Literal["tiny", "small", "large"]

Kind = Literal["qwen3", "window", "window-fp8", "mla", "images", "mtp"]
"""Plain full attention; windows beside full attention (Gemma 3); the same with scales for a KV cache in FP8; MLA
(DeepSeek V2); full attention that sees images, too (Qwen3 behind LLaVA's projector); full attention with a module that
drafts (MiMo's, one layer of MTP)."""

RECIPE_VERSION = 1
"""Part of every folder's name: raise it when the recipe below changes what it builds."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All that determines a model. Its digest names the model's folder."""

    seed: int
    vocab: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    max_position: int = 32768
    version: int = RECIPE_VERSION
    kind: Kind = "qwen3"

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache for one token, in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_size * 2

    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]


def recipe(size: Size, *, seed: int = 0, kind: Kind = "qwen3") -> Recipe:
    """Return the recipe of a size: "tiny" (5 M parameters), "small" (205 M, 32 KiB of KV a token) or "large".

    "large" has 1.4 billion parameters and 112 KiB of KV a token, and is for GPUs.

    Another seed gives another model of the same shape, which must not share a cache with the first. Other kinds have
    about as many parameters.
    """
    if size == "tiny":
        return Recipe(
            kind=kind, seed=seed, vocab=4096, layers=4, hidden=256, intermediate=1024, heads=8, kv_heads=4, head_size=64
        )
    if size == "small":
        return Recipe(
            kind=kind,
            seed=seed,
            vocab=16384,
            layers=16,
            hidden=1024,
            intermediate=2816,
            heads=16,
            kv_heads=8,
            head_size=64,
        )
    if size == "large":
        return Recipe(
            kind=kind,
            seed=seed,
            vocab=16384,
            layers=28,
            hidden=2048,
            intermediate=6144,
            heads=16,
            kv_heads=8,
            head_size=128,
            max_position=40960,
        )
    raise ValueError(f"model size: expected one of {', '.join(get_args(Size))}, got {size!r}")
