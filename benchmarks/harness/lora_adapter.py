"""A small random LoRA adapter for a model's folder, as PEFT writes it."""

from __future__ import annotations

import json
from pathlib import Path

RANK = 8
STRENGTH = 4.0
"""Of what the adapter adds to the output of a projection, against what it gets: answers must differ plainly."""


def make_adapter(folder: Path, model: Path, *, seed: int) -> str:
    """Write an adapter for the query and value projections of a model, or another one in its place; return its path."""
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    config = json.loads((model / "config.json").read_text())
    hidden, head = config["hidden_size"], config["head_dim"]
    sizes = {"q_proj": config["num_attention_heads"] * head, "v_proj": config["num_key_value_heads"] * head}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, size in sizes.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, hidden, generator=generator) / hidden**0.5
            tensors[f"{place}.lora_B.weight"] = torch.randn(size, RANK, generator=generator) * STRENGTH / RANK**0.5
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": sorted(sizes), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)
