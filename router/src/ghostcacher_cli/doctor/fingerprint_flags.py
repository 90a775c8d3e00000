"""Which flags of an engine decide a field of its fingerprint: what to make equal when workers do not share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Difference = tuple[str, str, str]
"""A field and its two values, as `identity.fingerprint.differences` returns them."""

MODEL_FILES = "the model's files"
WEIGHTS_ID = "weights_id (GC_WEIGHTS_ID)"

FLAGS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "vllm": {
        "model": ("--model",),
        "revision": ("--revision",),
        "config_digest": ("the model's config.json", "--hf-overrides", "--max-model-len"),
        "weights_digest": (MODEL_FILES, WEIGHTS_ID),
        "block_tokens": ("--block-size",),
        "tp": ("--tensor-parallel-size",),
        "pp": ("--pipeline-parallel-size",),
        "dcp": ("--decode-context-parallel-size",),
        "hash_algorithm": ("--prefix-caching-hash-algo",),
        "hash_seed": ("PYTHONHASHSEED",),
        "engine_version": ("the version of vLLM",),
    },
    "sglang": {
        "model": ("--model-path",),
        "revision": ("--revision",),
        "config_digest": ("the model's config.json", "--json-model-override-args", "--context-length"),
        "weights_digest": (MODEL_FILES, WEIGHTS_ID),
        "block_tokens": ("--page-size",),
        "tp": ("--tp-size",),
        "engine_version": ("the version of SGLang",),
    },
}
"""By engine and field. What holds for both, and what takes a look at the values, is in `flags_of`."""

SWITCHES = {"vllm": "VLLM_KV_CACHE_LAYOUT", "sglang": "SGLANG_USE_HND_KVCACHE"}
"""The environment variable that changes how bytes lie in a block."""

LAYOUTS: Mapping[str, Sequence[str]] = {"vllm": ("kv_layout (GC_KV_LAYOUT)", "the version of GhostCacher")}
"""What else decides how blocks lie in memory, and is seen in shapes and strides only. Older versions of GhostCacher
leave vLLM its own layout."""

SHAPES = frozenset({"layers", "kv_heads", "head_size", "block_tokens", "tp", "kv_dtype", "quantization"})
"""Fields from which shapes and strides follow: where one of them differs, those need no flag of their own."""


def fix_of(engine: str, found: Sequence[Difference]) -> str:
    """Return what to do so that workers share, naming flags rather than fields."""
    flags = list(dict.fromkeys(flag for difference in found for flag in flags_of(engine, difference, found)))
    fix = f"make {', '.join(flags) or 'the versions of GhostCacher'} equal on all of them"
    if any("private-" in a + b for _, a, b in found):
        fix += f"; a private value stands for what a worker could not read: set {WEIGHTS_ID} on all of them"
    return fix


def flags_of(engine: str, difference: Difference, found: Sequence[Difference]) -> Sequence[str]:
    """Return the flags behind one difference; none where it follows from another one of those found."""
    field, a, b = difference
    if field in ("kv_dtype", "quantization"):
        # A part of its own, then the data type of the model: see the adapters' `identity.py`.
        own = "--kv-cache-dtype" if field == "kv_dtype" else "--quantization"
        ours, _, dtype = a.partition("/")
        theirs, _, other_dtype = b.partition("/")
        return [
            *([own] if ours != theirs or dtype == other_dtype else []),
            *(["--dtype"] if dtype != other_dtype else []),
        ]
    if field == "layout":
        return _layout_flags(engine, a, b, follows=any(name in SHAPES for name, _, _ in found))
    if field in ("layers", "kv_heads", "head_size"):
        return (MODEL_FILES,)
    if field == "schema_version":
        return ("the version of GhostCacher",)
    return FLAGS.get(engine, {}).get(field, (field,))


def _layout_flags(engine: str, a: str, b: str, *, follows: bool) -> Sequence[str]:
    """Return the flags behind two layouts: ``attention backend:switches:shapes and strides``."""
    (backend, _, rest), (other_backend, _, other_rest) = a.partition(":"), b.partition(":")
    flags = ["--attention-backend"] if backend != other_backend else []
    if rest.partition(":")[0] != other_rest.partition(":")[0]:
        flags.append(SWITCHES.get(engine, "the layout of the KV cache"))
    if flags or follows:
        return flags
    switch = SWITCHES.get(engine, "the layout of the KV cache")
    return ["--attention-backend", switch, *LAYOUTS.get(engine, ())]
