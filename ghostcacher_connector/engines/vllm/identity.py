"""Collects from vLLM's configuration what makes two workers' blocks the same, and what a worker is called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import FingerprintMismatch
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.engines.common.versions import installed_version
from ghostcacher_connector.engines.common.worker_name import chosen_name
from ghostcacher_connector.engines.vllm.data_parallel import data_parallel_rank
from ghostcacher_connector.engines.vllm.drafters import drafter_identity, keeps_kv
from ghostcacher_connector.engines.vllm.layout_choice import backends_of
from ghostcacher_connector.engines.vllm.support import DISTRIBUTIONS
from ghostcacher_connector.identity.fingerprint import (
    KNOWN_BLOCK_TOKENS,
    KNOWN_TOKENS,
    WEIGHTS_AS_STARTED,
    Fingerprint,
    named_values,
    private_value,
)
from ghostcacher_connector.identity.model_files import (
    config_digest,
    model_name,
    processor_digest,
    resolved_digest,
    weights_digest,
)

if TYPE_CHECKING:
    import torch
    from vllm.config import CacheConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig

SHUFFLED = "VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT"
"""Environment of vLLM that changes the order of bytes inside a block without changing any stride."""

NUMERIC_VARIABLES = (
    *("VLLM_BATCH_INVARIANT", "VLLM_FLOAT32_MATMUL_PRECISION", "VLLM_MARLIN_INPUT_DTYPE", "VLLM_CPU_INT4_W4A8"),
    *("VLLM_HUMMING_ONLINE_QUANT_CONFIG", "VLLM_HUMMING_INPUT_QUANT_CONFIG", "VLLM_HUMMING_USE_F16_ACCUM"),
    *("VLLM_B12X_MOE_FP4_FORCE_A16", "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION", "VLLM_ROCM_FP8_MFMA_PAGE_ATTN"),
    *("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "VLLM_MLA_DISABLE"),
)
"""Environment of vLLM that changes precision, or what is computed at all. Kernels that only round differently are left
out on purpose: they differ between GPUs of one fleet, as batches of different sizes do on one of them.
"""
ATTENTION_OPTIONS = ("use_non_causal", "use_prefill_query_quantization", "disable_flashinfer_q_quantization")
"""Of vLLM's attention options: those that do so."""

FILE_FORMATS = frozenset(
    {
        *("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "pt", "npcache", "mistral"),
        *("runai_streamer", "sharded_state"),
    }
)
"""Of ``load_format``: those that read the files of the model's folder and nothing else."""

ITEM_OPTIONS = (
    *("language_model_only", "enable_mm_embeds", "media_io_kwargs", "mm_processor_kwargs", "mm_device_do_normalize"),
    *("mm_hasher_algorithm", "mm_encoder_attn_dtype", "interleave_mm_strings", "video_pruning_rate"),
    "video_pruning_method",
)
"""Of vLLM's options for images and other items: those that change what becomes of an item, or what it is called."""

ITEM_LIBRARIES = ("transformers", "pillow", "torchvision", "torchcodec", "opencv-python-headless", "soundfile")
"""What decodes and scales items: another version may give other numbers for the same bytes."""

PLAIN_CACHES = frozenset({"auto", "bfloat16", "float16", "half", "float32", "float"})
"""Of ``kv_cache_dtype``: those that say no more than the data type itself."""


def worker_name(vllm_config: VllmConfig, settings: Settings) -> str:
    """Return this worker's name in the fleet; each data-parallel engine is a worker of its own."""
    assert vllm_config.kv_transfer_config is not None
    engine_id = str(vllm_config.kv_transfer_config.engine_id)
    name = chosen_name(settings, engine_id)
    if name == engine_id:
        return name  # vLLM makes it for each data-parallel engine anew
    rank = data_parallel_rank(vllm_config)
    return name if rank is None else f"{name}-dp{rank}"


def fingerprint_of(
    vllm_config: VllmConfig, spec: FullAttentionSpec, layout: str, settings: Settings, *, by_head: bool = False
) -> Fingerprint:
    """Return the fingerprint of this engine's blocks, the same on each of its ranks.

    The data-parallel size is left out on purpose: replicas of one model hold the same KV.
    layout: as `kv_layout.describe` gives it or, by_head, `kv_layout.describe_heads`.
    """
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    assert vllm_config.kv_transfer_config is not None
    engine_id = str(vllm_config.kv_transfer_config.engine_id)
    path, cache_dir = str(model.model), vllm_config.load_config.download_dir
    name, revision = model_name(path, model.revision, cache_dir)
    files = config_digest(path, settings.weights_id, revision=model.revision, cache_dir=cache_dir, owner=engine_id)
    seed, known = _hashing(cache.prefix_caching_hash_algo, engine_id)
    ranks_hold = "replicas" if holds_replicas(spec) else "heads" if by_head else "shards"
    return Fingerprint(
        model=name,
        revision=revision,
        config_digest=_resolved(files, vllm_config),
        weights_digest=_weights(vllm_config, settings, engine_id),
        weights_epoch=WEIGHTS_AS_STARTED,
        kv_dtype=_kv_dtype(cache, spec, model.dtype, rounded=settings.rounds_objects),
        quantization=f"{model.quantization or 'none'}/{model.dtype}",
        numerics=_numerics(vllm_config, settings, engine_id),
        block_tokens=spec.block_size,
        layers=model.hf_text_config.num_hidden_layers,
        kv_heads=model.get_total_num_kv_heads(),
        head_size=spec.head_size,
        layout=f"{_attention_backend(vllm_config)}:{_layout_switches(cache)}:{layout}",
        tp=parallel.tensor_parallel_size if ranks_hold == "shards" else 1,
        ranks_hold=ranks_hold,
        pp=parallel.pipeline_parallel_size,
        dcp=parallel.decode_context_parallel_size,
        hash_algorithm=cache.prefix_caching_hash_algo,
        hash_seed=seed,
        known_hash=known,
        engine="vllm",
        engine_version=installed_version("vllm", DISTRIBUTIONS),
        schema_version=SCHEMA_VERSION,
    )


def holds_replicas(spec: FullAttentionSpec) -> bool:
    """Say whether all ranks of a stage hold the same rows: a latent vector is not divided by heads."""
    from vllm.v1.kv_cache_interface import MLAAttentionSpec  # noqa: PLC0415 - vLLM is optional

    return type(spec) is MLAAttentionSpec


def divides_heads(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, settings: Settings) -> bool:
    """Say whether each rank has as many heads as any other, in order, and nothing of a block but these.

    Not where a head is on several ranks, where numbers have scales of their own, where bytes are shuffled within a
    block, or where a drafter has heads of its own in it. Objects hold the rows of a rank, and are found by its number:
    with an object tier, sizes stay apart.
    """
    from vllm import envs  # noqa: PLC0415 - vLLM is optional
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode  # noqa: PLC0415

    spec, size = kv_cache_config.kv_cache_groups[0].kv_cache_spec, vllm_config.parallel_config.tensor_parallel_size
    return (
        len(kv_cache_config.kv_cache_groups) == 1
        and type(spec) is FullAttentionSpec
        and spec.kv_quant_mode == KVQuantMode.NONE
        and spec.num_kv_heads * size == vllm_config.model_config.get_total_num_kv_heads()
        and settings.object_url is None
        and not keeps_kv(vllm_config)
        and not envs.environment_variables.get(SHUFFLED, lambda: False)()
    )


def check_hashes(vllm_config: VllmConfig, by_rank: Mapping[str, str]) -> None:
    """Raise FingerprintMismatch when this process would hash the known prompt otherwise than the ranks did.

    The scheduler hashes blocks in its own process, and a rank fills in the fingerprint in another one, which may run on
    another machine. by_rank: the fields of that fingerprint.
    """
    assert vllm_config.kv_transfer_config is not None
    algorithm, engine_id = vllm_config.cache_config.prefix_caching_hash_algo, vllm_config.kv_transfer_config.engine_id
    _, known = _hashing(algorithm, str(engine_id))
    if known != by_rank["known_hash"]:
        raise FingerprintMismatch(
            f"known_hash: expected {known} as in the scheduler's process, got {by_rank['known_hash']} from a rank: "
            "PYTHONHASHSEED differs between the processes of this engine"
        )


def _resolved(files: str, vllm_config: VllmConfig) -> str:
    """Add to the digest of config.json what vLLM made of it: overrides, another config file, rope scaling."""
    model = vllm_config.model_config
    return resolved_digest(files, model.hf_config.to_dict(), model.hf_overrides, context_tokens=model.max_model_len)


def _weights(vllm_config: VllmConfig, settings: Settings, engine_id: str) -> str:
    model, load = vllm_config.model_config, vllm_config.load_config
    if load.load_format == "dummy":
        return f"dummy-seed-{model.seed}"
    from vllm import envs  # noqa: PLC0415 - vLLM is optional

    # From an object store, a loader of somebody's own, or by a name of another hub: nothing is known of these weights.
    elsewhere = bool(model.model_weights) or (envs.VLLM_USE_MODELSCOPE and not Path(str(model.model)).exists())
    if (elsewhere or load.load_format not in FILE_FORMATS) and settings.weights_id is None:
        return private_value(engine_id)
    return weights_digest(
        str(model.model),
        settings.weights_id,
        revision=model.revision,
        cache_dir=load.download_dir,
        owner=engine_id,
    )


def _kv_dtype(cache: CacheConfig, spec: FullAttentionSpec, of_model: torch.dtype, *, rounded: bool) -> str:
    """Return what the numbers of a KV cache are. Scales that do not change are the weights' (`weights_digest`).

    rounded: whether blocks may have been in objects that keep 8 bits. They, and what was computed after them, then
    differ from what a worker without such objects computes: these are two kinds of cache.
    """
    from vllm.platforms import current_platform  # noqa: PLC0415 - vLLM is optional
    from vllm.v1.kv_cache_interface import KVQuantMode  # noqa: PLC0415

    asked = [cache.cache_dtype, getattr(spec, "cache_dtype_str", None) or cache.cache_dtype]  # MLA has its own formats
    words = list(dict.fromkeys(_cache_dtype(each, spec.dtype == of_model) for each in asked))
    if spec.kv_quant_mode != KVQuantMode.NONE:
        # The cache is plain bytes, by which some of AMD's GPUs mean other numbers (e4m3fnuz).
        words.append(str(current_platform.fp8_dtype()).removeprefix("torch."))
    return f"{'+'.join(words)}/{spec.dtype}{', fp8 in objects' if rounded else ''}"


def _cache_dtype(asked: str, is_the_models: bool) -> str:
    """Return what was asked for as ``kv_cache_dtype``, by one name where vLLM has several."""
    if asked in PLAIN_CACHES and is_the_models:
        return "auto"
    return "fp8_e4m3" if asked == "fp8" else asked


def _numerics(vllm_config: VllmConfig, settings: Settings, engine_id: str) -> str:
    """Return what else changes the numbers, each as vLLM itself reads it: unset, 0 and false are one thing there."""
    from vllm import envs  # noqa: PLC0415 - vLLM is optional

    model, attention = vllm_config.model_config, vllm_config.attention_config
    getters = envs.environment_variables
    return named_values(
        {name: getters[name]() for name in NUMERIC_VARIABLES if name in getters}
        | {name: getattr(attention, name) for name in ATTENTION_OPTIONS if hasattr(attention, name)}
        | {
            "additional_config": vllm_config.additional_config,
            "architecture": model.architecture,
            "code_revision": model.code_revision,
            "model_class_overrides": model.model_class_overrides,
            "quantization_config": model.quantization_config,
        }
        | _items(vllm_config)
        | drafter_identity(vllm_config, settings, engine_id)
    )


def _items(vllm_config: VllmConfig) -> dict[str, object]:
    """Return what decides which numbers an image or another item becomes; nothing for a model of text alone."""
    model = vllm_config.model_config
    if (options := model.multimodal_config) is None:
        return {}
    files = processor_digest(str(model.model), revision=model.revision, cache_dir=vllm_config.load_config.download_dir)
    return {
        **{name: getattr(options, name) for name in ITEM_OPTIONS if hasattr(options, name)},
        **{name: _version_or_none(name) for name in ITEM_LIBRARIES},
        "processor_files": files,
    }


def _version_or_none(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _hashing(algorithm: str, engine_id: str) -> tuple[str, str]:
    """Return what tells the seed of vLLM's chain hash, and the hash of the known prompt under this seed.

    Both are private where vLLM draws a seed at random in each process. Nothing is read from the environment here: only
    vLLM knows what an empty PYTHONHASHSEED, or none, means to it.
    """
    from vllm.utils.hashing import get_hash_fn_by_name  # noqa: PLC0415 - vLLM is optional
    from vllm.v1.core.kv_cache_utils import (  # noqa: PLC0415
        BlockHash,
        hash_block_tokens,
        resolve_none_hash_seed,
    )

    hash_function = get_hash_fn_by_name(algorithm)
    seed = resolve_none_hash_seed(hash_function)
    if seed != resolve_none_hash_seed(hash_function):
        return private_value(engine_id), private_value(engine_id)
    block = BlockHash(hash_function(seed))
    for start in range(0, len(KNOWN_TOKENS), KNOWN_BLOCK_TOKENS):
        block = hash_block_tokens(hash_function, block, KNOWN_TOKENS[start : start + KNOWN_BLOCK_TOKENS])
    return hashlib.sha256(seed.encode()).hexdigest()[:16], block.hex()


def _attention_backend(vllm_config: VllmConfig) -> str:
    return "+".join(sorted({backend.get_name() for backend in backends_of(vllm_config)})) or "unknown"


def _layout_switches(cache: CacheConfig) -> str:
    """Return the layout that vLLM has resolved, or was asked for where it has not, and what no stride shows."""
    from vllm import envs  # noqa: PLC0415 - vLLM is optional

    layout = cache.kv_cache_layout or envs.environment_variables["VLLM_KV_CACHE_LAYOUT"]()
    words = [str(layout)] if layout else []
    shuffled = envs.environment_variables.get(SHUFFLED, lambda: False)()
    return ",".join([*words, *(["shuffled"] if shuffled else [])]) or "default"
