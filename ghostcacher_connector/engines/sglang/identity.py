"""Collects from SGLang's configuration what makes two workers' pages the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.srt.runtime_context import get_exec, get_model, get_parallel

from ghostcacher_connector.config import Settings
from ghostcacher_connector.engines.sglang.proven import DISTRIBUTIONS
from ghostcacher_connector.engines.versions import installed_version
from ghostcacher_connector.fingerprint import Fingerprint, private_value
from ghostcacher_connector.model_files import config_digest, resolved_digest, weights_digest
from ghostcacher_connector.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

HASH_ALGORITHM = "sha256-u32le-chain"
HASH_SEED = "sglang-cache-namespace-v1"
"""Chains begin with nothing, or with the digest of extra_key and cache_salt under this name."""

NUMERIC_SWITCHES = ("SGLANG_USE_HND_KVCACHE", "SGLANG_ENABLE_DETERMINISTIC_INFERENCE")


def fingerprint_of(
    model: ModelConfig, pool: MHATokenToKVPool, layout: str, settings: Settings, *, page_tokens: int, owner: str
) -> Fingerprint:
    """Return the fingerprint of this engine's pages, the same on each of its ranks.

    layout: as `pool.describe` gives it. owner: this engine's own random name.
    """
    name, revision = str(get_model().model_path), model.revision
    files = config_digest(name, settings.weights_id, revision=revision, owner=owner)
    resolved = resolved_digest(
        files, model.hf_config.to_dict(), model.model_override_args, context_tokens=model.context_len
    )
    return Fingerprint(
        # Where the files lie on this machine does not matter; what is in them is in the digests.
        model=Path(name).name if Path(name).exists() else name,
        revision=revision or "none",
        config_digest=resolved,
        weights_digest=_weights(name, revision, settings, owner),
        kv_dtype=str(pool.dtype),
        quantization=f"{model.quantization or 'none'}/{model.dtype}",
        block_tokens=page_tokens,
        layers=model.hf_text_config.num_hidden_layers,
        kv_heads=model.get_total_num_kv_heads(),
        head_size=model.head_dim,
        layout=f"{get_exec().kernel.attention_backend}:{_switches()}:{layout}",
        tp=get_parallel().tp_size,
        pp=1,
        dcp=1,
        hash_algorithm=HASH_ALGORITHM,
        hash_seed=HASH_SEED,
        engine="sglang",
        engine_version=installed_version("sglang", DISTRIBUTIONS),
        schema_version=SCHEMA_VERSION,
    )


def _weights(name: str, revision: str | None, settings: Settings, owner: str) -> str:
    if get_model().load_format == "dummy" and settings.weights_id is None:
        return private_value(owner)
    return weights_digest(name, settings.weights_id, revision=revision, owner=owner)


def _switches() -> str:
    return ",".join(f"{name}={os.environ[name]}" for name in NUMERIC_SWITCHES if name in os.environ) or "default"
