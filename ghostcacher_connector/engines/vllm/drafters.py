"""Drafters that keep KV of their own (EAGLE, MTP, draft models): which of them are shared, and who they are.

Their layers lie in the KV cache group of the model's own layers, so that a block holds the drafter's rows of its
tokens, too. Every draft is verified: wrong rows can make fewer drafts right, and no answer wrong. Why pulled rows are
as good as those of vLLM's own cache is in docs/DESIGN.md, section 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ghostcacher_connector.config import Settings
from ghostcacher_connector.identity.model_files import config_digest, locate_model, resolved_digest, weights_digest

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

WITHOUT_KV = ("ngram",)
"""Methods of speculative decoding whose drafts come from tokens alone, and are known when a step is scheduled."""

WITH_KV = ("eagle", "eagle3", "mtp", "draft_model")
"""Methods whose drafter has attention layers."""

BLOCKS_BACK = 1
"""Blocks at the end of a match that vLLM computes again, where drafters look ahead: see `blocks_held_back`."""


def keeps_kv(vllm_config: VllmConfig) -> bool:
    """Say whether the engine has a drafter of those with KV of their own."""
    draft = vllm_config.speculative_config
    return draft is not None and draft.method in WITH_KV


def blocks_held_back(vllm_config: VllmConfig) -> int:
    """Return how many blocks at the end of what is found are not used, as vLLM does with its own cache.

    The row that EAGLE and MTP keep of a token depends on the token behind it. So the last row of a block follows from
    what its hash covers and the first token of the next block: it is right where that block was found, too.
    """
    return BLOCKS_BACK if keeps_kv(vllm_config) and vllm_config.speculative_config.method != "draft_model" else 0


def draft_faults(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> Iterator[str]:
    """Yield what of speculative decoding, as it is configured, sharing is not proven with."""
    draft = vllm_config.speculative_config
    if draft is None:
        return
    known = (*WITHOUT_KV, *WITH_KV)
    if draft.method not in known:
        yield f"speculative decoding: expected none, or one of {', '.join(known)}, found {draft.method}"
        return
    if vllm_config.scheduler_config.async_scheduling:
        yield "async_scheduling: expected false with speculative decoding (it counts drafts before they are accepted)"
    if not keeps_kv(vllm_config):
        return
    if len(kv_cache_config.kv_cache_groups) > 1:
        yield "speculative decoding: expected the drafter's layers in the KV cache group of the model's, found several"
    if draft.use_multi_module_mtp():
        yield "speculative decoding: expected one MTP module, found several (they write rows of finished blocks again)"
    if draft.parallel_drafting:
        yield "parallel_drafting: expected false (it leaves rows of tokens that were never drafted one by one)"
    if draft.uses_dynamic_speculative_decoding():
        yield "num_speculative_tokens_per_batch_size: expected none (in large batches no rows are written)"


def drafter_identity(vllm_config: VllmConfig, settings: Settings, engine_id: str) -> dict[str, object]:
    """Return what decides which rows a drafter keeps of given tokens; nothing where no drafter keeps any.

    Its weights count by their files, where they are to be found: `weights_id` names the model's first of all.
    engine_id: see `private_value`.
    """
    if not keeps_kv(vllm_config):
        return {}
    draft = vllm_config.speculative_config
    model, load = draft.draft_model_config, draft.draft_load_config or vllm_config.load_config
    path, revision, cache_dir = str(model.model), model.revision, load.download_dir
    same = path == str(vllm_config.model_config.model)  # as with MTP: its layers are in the model's own files
    unknown = locate_model(path, revision, cache_dir) is None
    weights_id = settings.weights_id if same or unknown else None
    files = config_digest(path, weights_id, revision=revision, cache_dir=cache_dir, owner=engine_id)
    if load.load_format == "dummy":
        weights = f"dummy-seed-{model.seed}"
    elif same:
        weights = "those of the model"
    else:
        weights = weights_digest(path, weights_id, revision=revision, cache_dir=cache_dir, owner=engine_id)
    return {
        "drafter": draft.method,
        "drafter_config": resolved_digest(
            files, model.hf_config.to_dict(), model.hf_overrides, context_tokens=model.max_model_len
        ),
        "drafter_dtype": f"{model.quantization or 'none'}/{model.dtype}",
        "drafter_weights": weights,
    }


def drafter_of(worker: Any) -> torch.nn.Module | None:
    """Return the drafter's model in a rank; None where there is none, or none that can be found. worker: vLLM's own."""
    find = getattr(worker, "get_draft_model", None)
    return find() if find is not None else None
