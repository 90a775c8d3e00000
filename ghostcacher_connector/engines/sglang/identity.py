"""Collects from SGLang's configuration what makes two workers' pages the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from sglang.srt.environ import envs
from sglang.srt.mem_cache.utils import get_hash_str
from sglang.srt.runtime_context import get_exec, get_lora, get_model, get_parallel

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.schema import SCHEMA_VERSION
from ghostcacher_connector.engines.common.versions import installed_version
from ghostcacher_connector.engines.sglang.plugin import DISTRIBUTIONS
from ghostcacher_connector.identity.fingerprint import (
    KNOWN_BLOCK_TOKENS,
    KNOWN_TOKENS,
    WEIGHTS_AS_STARTED,
    Fingerprint,
    named_values,
    private_value,
)
from ghostcacher_connector.identity.model_files import config_digest, model_name, resolved_digest, weights_digest

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig

    from ghostcacher_connector.engines.sglang.kv_pool import KvPool

HASH_ALGORITHM = "sha256-u32le-chain"
HASH_SEED = "sglang-cache-namespace-v1"
"""Chains begin with nothing, or with the digest of extra_key and cache_salt under this name."""

FILE_FORMATS = frozenset(
    {
        *("auto", "safetensors", "fastsafetensors", "instanttensor", "pt", "npcache", "mistral", "gguf"),
        *("bitsandbytes", "layered"),
    }
)
"""Of ``load_format``: those that read the files of the model's folder, all of them and nothing else."""
OTHER_SOURCES = (
    "custom_weight_loader",
    "model_loader_extra_config",
    "modelopt_checkpoint_restore_path",
    "rl_quant_profile",
    "decrypted_config_file",
)
"""Options of the model that take weights from elsewhere, or change them."""
NO_KV_KERNELS = frozenset({"sampling_backend", "grammar_backend"})
"""Of the kernels' options: those that come behind the last layer."""

NUMERIC_SWITCHES = ("SGLANG_ENABLE_DETERMINISTIC_INFERENCE",)
"""Environment of SGLang that changes numbers, and no option of the kernels."""


def fingerprint_of(
    model: ModelConfig, pool: KvPool, layout: str, settings: Settings, *, page_tokens: int, owner: str
) -> Fingerprint:
    """Return the fingerprint of this engine's pages, the same on each of its ranks.

    layout: as `kv_pool.describe` gives it. owner: this engine's own random name.
    """
    path, cache_dir = str(get_model().model_path), get_model().download_dir
    name, revision = model_name(path, model.revision, cache_dir)
    files = config_digest(path, settings.weights_id, revision=model.revision, cache_dir=cache_dir, owner=owner)
    resolved = resolved_digest(
        files, model.hf_config.to_dict(), model.model_override_args, context_tokens=model.context_len
    )
    return Fingerprint(
        model=name,
        revision=revision,
        config_digest=resolved,
        weights_digest=_weights(path, model.revision, settings, owner),
        weights_epoch=WEIGHTS_AS_STARTED,
        kv_dtype=str(pool.dtype),
        quantization=f"{model.quantization or 'none'}/{model.dtype}",
        numerics=f"{numerics()}:{adapter_kernels()}",
        block_tokens=page_tokens,
        layers=model.hf_text_config.num_hidden_layers,
        kv_heads=model.get_total_num_kv_heads(),
        head_size=model.head_dim,
        layout=f"{_kernels()}:{layout_switches()}:{layout}",
        tp=get_parallel().tp_size,
        ranks_hold="shards",
        pp=1,
        dcp=1,
        hash_algorithm=HASH_ALGORITHM,
        hash_seed=HASH_SEED,
        known_hash=known_hash(),
        engine="sglang",
        engine_version=installed_version("sglang", DISTRIBUTIONS),
        schema_version=SCHEMA_VERSION,
    )


def known_hash() -> str:
    """Return the hash that SGLang's own function gives the known prompt; there is no seed in it."""
    page: str | None = None
    for start in range(0, len(KNOWN_TOKENS), KNOWN_BLOCK_TOKENS):
        page = get_hash_str(list(KNOWN_TOKENS[start : start + KNOWN_BLOCK_TOKENS]), page)
    return str(page)


def _weights(path: str, revision: str | None, settings: Settings, owner: str) -> str:
    """Return the digest of the model's files, where the weights come from these, and nothing is done to them."""
    model = get_model()
    read = model.load_format in FILE_FORMATS and not any(_is_set(getattr(model, field)) for field in OTHER_SOURCES)
    # A name is that of another hub then, of which nothing is known here.
    elsewhere = envs.SGLANG_USE_MODELSCOPE.get() and not Path(path).exists()
    if (elsewhere or not read) and settings.weights_id is None:
        return private_value(owner)
    return weights_digest(path, settings.weights_id, revision=revision, cache_dir=model.download_dir, owner=owner)


def _is_set(value: object) -> bool:
    return value not in (None, "", "{}", [], {}, False)


def _kernels() -> str:
    """Return what computes keys and values, by name as far as people know the names."""
    fields = {name: str(value) for name, value in get_exec().kernel._fields.items() if name not in NO_KV_KERNELS}
    digest = hashlib.sha256(msgspec.json.encode(sorted(fields.items()))).hexdigest()[:12]
    return f"{fields['attention_backend']}/{fields['prefill_attention_backend']}:{digest}"


def numerics() -> str:
    """Return what changes numbers and is no option of the kernels, as SGLang reads it."""
    return named_values({name: getattr(envs, name).get() for name in NUMERIC_SWITCHES})


def adapter_kernels() -> str:
    """Return what adds adapters: requests without one may share a batch with others, and go through it."""
    lora = get_lora()
    return f"lora:{lora.lora_backend}" if lora.enable_lora else "no lora"


def layout_switches() -> str:
    """Return what changes the order of bytes in a page, as SGLang reads it."""
    return "HND" if envs.SGLANG_USE_HND_KVCACHE.get() else "default"
