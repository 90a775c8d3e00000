"""Which flags of an engine decide a field of its fingerprint: what to make equal when workers do not share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghostcacher_connector.identity.fingerprint import ABSENT, differences
from ghostcacher_connector.identity.model_files import HUB_DIGEST

Difference = tuple[str, str, str]
"""A field and its two values, as `identity.fingerprint.differences` returns them."""

MODEL_FILES = "the model's files"
GIVEN_WEIGHTS = "the weights given to running engines"
WEIGHTS_ID = "weights_id (GC_WEIGHTS_ID)"
HASH_SEED = "PYTHONHASHSEED (unset and empty are two values)"
OUR_VERSION = "the version of GhostCacher"

FLAGS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "vllm": {
        "model": ("--model",),
        "revision": ("--revision",),
        "config_digest": ("the model's config.json", "--hf-overrides", "--max-model-len"),
        "weights_digest": (MODEL_FILES, WEIGHTS_ID),
        "weights_epoch": (GIVEN_WEIGHTS,),
        "block_tokens": ("--block-size",),
        "tp": ("--tensor-parallel-size",),
        "pp": ("--pipeline-parallel-size",),
        "dcp": ("--decode-context-parallel-size",),
        "hash_algorithm": ("--prefix-caching-hash-algo",),
        "hash_seed": (HASH_SEED,),
        "known_hash": (HASH_SEED, "the versions of vLLM and Python"),
        "engine_version": ("the version of vLLM",),
    },
    "sglang": {
        "model": ("--model-path",),
        "revision": ("--revision",),
        "config_digest": ("the model's config.json", "--json-model-override-args", "--context-length"),
        "weights_digest": (MODEL_FILES, WEIGHTS_ID),
        "weights_epoch": (GIVEN_WEIGHTS,),
        "block_tokens": ("--page-size",),
        "tp": ("--tp-size",),
        "known_hash": ("the version of SGLang",),
        "engine_version": ("the version of SGLang",),
    },
}
"""By engine and field. What takes a look at the values is in `flags_of`."""

COMMON: Mapping[str, Sequence[str]] = {
    "layers": (MODEL_FILES,),
    "kv_heads": (MODEL_FILES,),
    "head_size": (MODEL_FILES,),
    "schema_version": (OUR_VERSION,),
}
"""The same for both engines."""

HASHING = frozenset({"hash_algorithm", "hash_seed", "known_hash"})
"""Fields of the chain hash. The hash of the known prompt follows from the other two."""

SWITCHES = {"vllm": "VLLM_KV_CACHE_LAYOUT", "sglang": "SGLANG_USE_HND_KVCACHE"}
"""The environment variable that changes how bytes lie in a block."""

LAYOUTS: Mapping[str, Sequence[str]] = {"vllm": ("kv_layout (GC_KV_LAYOUT)", OUR_VERSION)}
"""What else decides how blocks lie in memory. Older versions of GhostCacher leave vLLM its own layout."""

SHAPES = frozenset({"layers", "kv_heads", "head_size", "block_tokens", "tp", "kv_dtype", "quantization"})
"""Fields from which shapes and strides follow: where one of them differs, those need no flag of their own."""


def fix_of(engine: str, found: Sequence[Difference]) -> str:
    """Return what to do so that workers share, naming flags rather than fields."""
    if engine in FLAGS and any(ABSENT in (a, b) for _, a, b in found):
        # Two versions know other fields, and may fill in the others in two ways: flags would send people astray.
        return f"make {OUR_VERSION} equal on all of them: what else differs may follow from it"
    flags = list(dict.fromkeys(flag for difference in found for flag in flags_of(engine, difference, found)))
    fix = f"make {', '.join(flags) or OUR_VERSION} equal on all of them"
    private = {field for field, a, b in found if "private-" in a + b and field != "weights_epoch"}
    if private & HASHING:
        fix += "; vLLM draws a seed at random for this hash algorithm: set PYTHONHASHSEED to one value on all of them"
    if private - HASHING:
        fix += f"; a private value stands for what a worker could not read: set {WEIGHTS_ID} on all of them"
    return fix


def flags_of(engine: str, difference: Difference, found: Sequence[Difference]) -> Sequence[str]:
    """Return the flags behind one difference; none where it follows from another one of those found."""
    field, a, b = difference
    names = {name for name, _, _ in found}
    if field == "weights_digest" and a.startswith(HUB_DIGEST) != b.startswith(HUB_DIGEST):
        return (f"where {MODEL_FILES} come from (a Hugging Face cache, or a folder)", WEIGHTS_ID)
    if field == "known_hash" and names & HASHING - {field}:
        return ()
    if field in ("kv_dtype", "quantization"):
        # A part of its own, then the data type of the model: see the adapters' `identity.py`.
        own = "--kv-cache-dtype" if field == "kv_dtype" else "--quantization"
        ours, _, dtype = a.partition("/")
        theirs, _, other_dtype = b.partition("/")
        return [
            *([own] if ours != theirs or dtype == other_dtype else []),
            *(["--dtype"] if dtype != other_dtype else []),
        ]
    if field == "numerics":
        values, other_values = (dict(part.partition("=")[::2] for part in text.split(";")) for text in (a, b))
        return [name for name, _, _ in differences(values, other_values)]
    if field == "layout":
        return _layout_flags(engine, a, b, follows=bool(names & SHAPES))
    return FLAGS.get(engine, {}).get(field, COMMON.get(field, (field,)))


def _layout_flags(engine: str, a: str, b: str, *, follows: bool) -> Sequence[str]:
    """Return the flags behind two layouts: ``attention backend:switches:shapes and strides``."""
    (backend, _, rest), (other_backend, _, other_rest) = a.partition(":"), b.partition(":")
    switches = (SWITCHES.get(engine, "the layout of the KV cache"), *LAYOUTS.get(engine, ()))
    flags = ["--attention-backend"] if backend != other_backend else []
    if rest.partition(":")[0] != other_rest.partition(":")[0]:
        flags.extend(switches)
    return flags or ([] if follows else ["--attention-backend", *switches])
