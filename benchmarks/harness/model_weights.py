"""The kinds of models that are made here: their architectures, with random weights that make wrong KV show.

Plain initialisation gives a nearly flat distribution of tokens and attention that averages its context away: a wrong
KV cache is hard to see then, and the greedy token hangs on rounding. So norms and projections are made larger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.drafter import add_mtp_module
from benchmarks.harness.model_recipe import Kind, Recipe
from benchmarks.harness.model_vision import vision_settings

if TYPE_CHECKING:
    import torch

INIT_STD = 0.02

LOGIT_STD = 4.0
"""Spread of the logits. Plain initialisation gives under 1."""

ATTENTION_GAIN = 1.6
"""Of the query and key norms, each. With 1 a random model attends to everything alike; much more, and rounding is
amplified from layer to layer."""

LARGE_HIDDEN = 2048
"""From this width on a model is made on a GPU where there is one."""

WINDOW_TOKENS = 96
"""That a layer with a window sees: a few blocks."""

LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
"""The only latent size that vLLM's kernel for CPUs takes: DeepSeek's own."""

K_SCALE, V_SCALE = 0.04, 0.02
"""Of the first layer's KV in FP8; later ones have larger ones. Without scales rounding would be ten times as coarse."""

KV_IN_FP8 = {
    "quant_method": "compressed-tensors",
    "format": "dense",
    "config_groups": {},
    "ignore": [],
    "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False},
}
"""As llm-compressor writes it for a model of which only the KV cache is quantised."""


def build_weights(plan: Recipe, folder: Path, *, eos_token_id: int) -> None:
    """Make a model by its recipe and save it: configuration and weights."""
    import torch  # noqa: PLC0415
    from transformers import logging  # noqa: PLC0415

    common: dict[str, Any] = {
        "vocab_size": plan.vocab,
        "hidden_size": plan.hidden,
        "intermediate_size": plan.intermediate,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "num_key_value_heads": plan.kv_heads,
        "max_position_embeddings": plan.max_position,
        "tie_word_embeddings": True,
        "initializer_range": INIT_STD,
        "eos_token_id": eos_token_id,
        "dtype": "bfloat16",
    }
    # A billion random numbers take a GPU seconds, and a CPU minutes. They are others there, and so is the model.
    device = "cuda" if plan.hidden >= LARGE_HIDDEN and torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(plan.seed)
        with torch.no_grad():
            model = BUILDERS[plan.kind](plan, common)
    logging.disable_progress_bar()
    model.to(torch.bfloat16).save_pretrained(folder)
    if plan.kind == "window-fp8":
        _add_scales(plan, folder)
    if plan.kind == "mtp":
        add_mtp_module(folder)


def _qwen3(plan: Recipe, common: dict[str, Any]) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415

    model = Qwen3ForCausalLM(Qwen3Config(head_dim=plan.head_size, **common))
    _enlarge_norms(plan, model.model)
    return model


def _llava(plan: Recipe, common: dict[str, Any]) -> Any:
    """The same behind an encoder of images."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen3Config  # noqa: PLC0415

    text = Qwen3Config(head_dim=plan.head_size, architectures=["Qwen3ForCausalLM"], **common)
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, **vision_settings()))
    _enlarge_norms(plan, model.model.language_model)
    return model


def _qwen2(plan: Recipe, common: dict[str, Any]) -> Any:
    """There is no norm of queries and keys. Whoever drafts has a head of its own, which must be in the checkpoint."""
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415

    model = Qwen2ForCausalLM(Qwen2Config(**{**common, "tie_word_embeddings": False}))
    model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.model.norm.weight.fill_(_last_norm(plan))
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.mul_(ATTENTION_GAIN / (INIT_STD * math.sqrt(plan.hidden)))
    return model


def _enlarge_norms(plan: Recipe, model: Any) -> None:
    model.norm.weight.fill_(_last_norm(plan))
    for layer in model.layers:
        layer.self_attn.q_norm.weight.fill_(ATTENTION_GAIN)
        layer.self_attn.k_norm.weight.fill_(ATTENTION_GAIN)


def _gemma3(plan: Recipe, common: dict[str, Any]) -> Any:
    """Every second layer has a window. Gemma's norms multiply by one more than their weight."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig  # noqa: PLC0415

    config = Gemma3TextConfig(
        head_dim=plan.head_size,
        query_pre_attn_scalar=plan.head_size,
        sliding_window=WINDOW_TOKENS,
        layer_types=["sliding_attention", "full_attention"] * (plan.layers // 2),
        **common,
    )
    model = Gemma3ForCausalLM(config)
    model.model.norm.weight.fill_(_last_norm(plan) - 1)
    for layer in model.model.layers:
        layer.self_attn.q_norm.weight.fill_(ATTENTION_GAIN - 1)
        layer.self_attn.k_norm.weight.fill_(ATTENTION_GAIN - 1)
    return model


def _deepseek(plan: Recipe, common: dict[str, Any]) -> Any:
    """All layers are dense. There is a norm of the latent vector, and none of queries and keys.

    vLLM takes no tied embeddings here: without a head of its own the model would give each token the same chance.
    """
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM  # noqa: PLC0415

    config = DeepseekV2Config(
        q_lora_rank=None,
        qk_nope_head_dim=plan.head_size,
        v_head_dim=plan.head_size,
        first_k_dense_replace=plan.layers,
        **LATENT,
        **{**common, "num_key_value_heads": plan.heads, "tie_word_embeddings": False},
    )
    model = DeepseekV2ForCausalLM(config)
    model.model.norm.weight.fill_(_last_norm(plan))
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(ATTENTION_GAIN / (INIT_STD * math.sqrt(plan.hidden)))
        layer.self_attn.kv_a_layernorm.weight.fill_(ATTENTION_GAIN / (INIT_STD * math.sqrt(LATENT["kv_lora_rank"])))
    return model


BUILDERS: dict[Kind, Callable[[Recipe, dict[str, Any]], Any]] = {
    "qwen3": _qwen3,
    "window": _gemma3,
    "window-fp8": _gemma3,
    "mla": _deepseek,
    "images": _llava,
    "mtp": _qwen2,
}


def _last_norm(plan: Recipe) -> float:
    return LOGIT_STD / (INIT_STD * math.sqrt(plan.hidden))


def _add_scales(plan: Recipe, folder: Path) -> None:
    """Put the scales of a KV cache in FP8 into a checkpoint, others for each layer."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    weights = folder / "model.safetensors"
    save_file({**load_file(weights), **dict(_scales(plan))}, weights, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": KV_IN_FP8}, indent=2))


def _scales(plan: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
    import torch  # noqa: PLC0415

    for layer in range(plan.layers):
        for name, first in (("k_scale", K_SCALE), ("v_scale", V_SCALE)):
            yield f"model.layers.{layer}.self_attn.{name}", torch.tensor(first * (1 + layer / 4))
