"""What a cache of a size, and a tier under an engine's cache, is worth: in bytes and in seconds, under assumptions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghostcacher_cli.analyze.stack_distance import HitCurve
from ghostcacher_connector.core.errors import ConfigError

GIB = 1 << 30
SIZES_MOST = 8
"""Sizes of a table where nobody names some: each twice the one before."""
NEARLY_ALL = 0.995
"""The part of what any cache could save that the largest of them saves: the last uses of a file may lie far apart."""
ELEMENT_BYTES = {"float32": 4, "float": 4, "float8_e4m3fn": 1, "float8_e5m2": 1}
"""Bytes of a number by the name of its type, where they are not 2."""


class Assumptions(NamedTuple):
    """What bytes and seconds are made of. Each has an option of its name."""

    bytes_per_token: int = 131_072
    """KV of one token in all layers, in bytes. The default is Llama 3 8B's in 16 bits: 32 layers of 8 heads of 128."""
    kv_of: str = "Llama 3 8B in 16 bits"
    """Where that number comes from, for people."""
    prefill_tokens_per_second: float = 10_000.0
    """What an engine computes."""
    load_gib_per_second: float = 10.0
    """From host memory into an engine's cache."""
    object_gib_per_second: float = 1.0
    """From files or objects into an engine's cache."""
    engine_gib: float = 16.0
    """An engine's own KV cache."""
    host_gib: float = 64.0
    """A host tier under it."""
    text_bytes_per_token: float = 4.0
    """How much text makes a token, where no token ids are given."""

    def compute_s(self, tokens: float) -> float:
        """Return how long an engine computes so many tokens, in s."""
        return tokens / self.prefill_tokens_per_second


class TierWorth(NamedTuple):
    """What one tier adds to those above it. Tiers keep by LRU, and what one holds no other does."""

    name: str
    """engine, host or objects."""
    size_bytes: int | None
    """How large it is; None for one without bounds."""
    filled_bytes: int
    """How much of that the trace fills."""
    saved_tokens: int
    """Prompt tokens that it serves, and no tier above it does."""
    loaded_bytes: int
    """What is loaded from it for that."""
    compute_s: float
    """What an engine would have computed at them."""
    load_s: float
    """How long loading takes."""

    @property
    def worth_s(self) -> float:
        """Return what it saves; 0 where loading takes longer than computing, for then an engine computes."""
        return max(0.0, self.compute_s - self.load_s)


def tiers_worth(curve: HitCurve, distinct_bytes: int, block_bytes: int, given: Assumptions) -> Sequence[TierWorth]:
    """Return what the engine's cache, the host tier and the object tier are worth, each beyond those before it.

    distinct_bytes: KV of all different blocks. block_bytes: KV of one block.
    """
    engine_bytes, host_bytes = int(given.engine_gib * GIB), int(given.host_gib * GIB)
    places = (
        ("engine", engine_bytes, engine_bytes, None),
        ("host", host_bytes, engine_bytes + host_bytes, given.load_gib_per_second),
        ("objects", None, None, given.object_gib_per_second),
    )
    found = []
    above_tokens = above_bytes = 0
    for name, size_bytes, together_bytes, gib_per_s in places:
        saved = curve.most if together_bytes is None else curve.at(together_bytes // block_bytes)
        tokens = saved - above_tokens
        loaded = 0 if gib_per_s is None else tokens * given.bytes_per_token
        load_s = 0.0 if gib_per_s is None else loaded / (gib_per_s * GIB)
        # An object is written once in the fleet and stays: the object tier holds what the tiers above hold as well.
        held = distinct_bytes if size_bytes is None else max(0, min(size_bytes, distinct_bytes - above_bytes))
        found.append(TierWorth(name, size_bytes, held, tokens, loaded, given.compute_s(tokens), load_s))
        above_tokens, above_bytes = saved, above_bytes + held
    return found


def sizes_for(curve: HitCurve, block_bytes: int) -> Sequence[int]:
    """Return the sizes of caches to look at, in bytes: powers of 2, up to where more brings next to nothing."""
    most = 1 << max(0, curve.needed(NEARLY_ALL) * block_bytes - 1).bit_length()
    sizes = [most >> shift for shift in range(SIZES_MOST) if most >> shift >= block_bytes]
    return sizes[::-1] or [most]


def bytes_per_token_of(path: Path) -> int:
    """Return the KV of one token in all layers, in bytes, by a model's config.json or the folder with it.

    Raises ConfigError.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"--model-config: {path} cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise ConfigError(f"--model-config: {path}: expected JSON, got what is none: {exc}") from exc
    if not isinstance(config, dict):
        raise ConfigError(f"--model-config: {path}: expected an object, got {type(config).__name__}")
    text = config.get("text_config")
    if isinstance(text, dict):
        config |= text
    return _layers_bytes(config, path)


def _layers_bytes(config: Mapping[str, Any], path: Path) -> int:
    def number(name: str) -> int:
        value = config.get(name)
        if type(value) is not int or value < 1:
            raise ConfigError(f"--model-config: {path}: {name}: expected a whole number from 1, got {value!r}")
        return value

    element = ELEMENT_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."), 2)
    layers = number("num_hidden_layers")
    if config.get("kv_lora_rank") is not None:
        # Multi-head latent attention keeps one compressed vector a token, and the rotated part of the keys.
        return layers * (number("kv_lora_rank") + number("qk_rope_head_dim")) * element
    heads = number("num_attention_heads")
    head = number("head_dim") if config.get("head_dim") is not None else number("hidden_size") // heads
    kv_heads = number("num_key_value_heads") if config.get("num_key_value_heads") is not None else heads
    return 2 * layers * kv_heads * head * element
