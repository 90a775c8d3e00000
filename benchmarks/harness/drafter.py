"""Drafters for random models: one layer, which reads the model's last hidden state, as EAGLE and MTP have it.

It is the model's own last layer over again. So its drafts are right for some tokens and wrong for others, and which
ones depends on the KV that it keeps itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SUFFIX = "-eagle"
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
OTHERS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm")
MTP_TOKEN_SHARE = 0.5
"""Of the token behind a hidden state in what a module of MTP computes, against the hidden state."""
TAKEN = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size")


def ensure_drafter(model: Path) -> Path:
    """Return the folder of a drafter for a model of the kind "qwen3", building it first if it is not there."""
    folder = model.with_name(model.name + SUFFIX)
    if not (folder / "config.json").exists():
        _build(model, folder)
    return folder


def _build(model: Path, folder: Path) -> None:
    import torch  # noqa: PLC0415 - routers and tools do without
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    config: dict[str, Any] = json.loads((model / "config.json").read_bytes())
    weights, hidden = load_file(model / "model.safetensors"), config["hidden_size"]
    last = f"model.layers.{config['num_hidden_layers'] - 1}."
    taken = {f"layers.0.{name}.weight": weights[f"{last}{name}.weight"].clone() for name in (*PROJECTIONS, *OTHERS)}
    # Of the token's embedding and the hidden state before it, side by side, only the latter counts.
    taken["fc.weight"] = torch.cat([torch.zeros(hidden, hidden), torch.eye(hidden)], dim=1).to(torch.bfloat16)
    folder.mkdir(exist_ok=True)
    save_file(taken, folder / "model.safetensors")
    described = {name: config[name] for name in TAKEN} | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "max_position_embeddings": config["max_position_embeddings"],
        "rms_norm_eps": config["rms_norm_eps"],
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2))  # last: then it is complete


def add_mtp_module(model: Path) -> None:
    """Add such a layer to the files of a Qwen2 model: they become those of a MiMo model, which has a module of MTP."""
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    config: dict[str, Any] = json.loads((model / "config.json").read_bytes())
    weights, hidden = load_file(model / "model.safetensors"), config["hidden_size"]
    last, module = f"model.layers.{config['num_hidden_layers'] - 1}.", "model.mtp_layers.0."
    taken = {module + name.removeprefix(last): each.clone() for name, each in weights.items() if name.startswith(last)}
    for norm in ("token_layernorm", "hidden_layernorm"):
        taken[f"{module}{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    taken[f"{module}final_layernorm.weight"] = weights["model.norm.weight"].clone()
    both = [torch.eye(hidden), MTP_TOKEN_SHARE * torch.eye(hidden)]  # the hidden state, and the token behind it
    taken[f"{module}input_proj.weight"] = torch.cat(both, dim=1).to(torch.bfloat16)
    save_file({**weights, **taken}, model / "model.safetensors", metadata={"format": "pt"})
    described = {**config, "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
    (model / "config.json").write_text(json.dumps(described, indent=2))
