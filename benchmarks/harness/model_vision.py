"""What a random model with images has beside its text part: an encoder (CLIP), and how images are prepared for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

IMAGE_TOKEN = "<image>"  # noqa: S105 - of a prompt
IMAGE_TOKEN_ID = 3
"""Behind the three special tokens that all models have."""
IMAGE_PIXELS = 112
PATCH_PIXELS = 14
IMAGE_TOKENS = (IMAGE_PIXELS // PATCH_PIXELS) ** 2
"""Of every image, whatever its size."""

PREPARED = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": IMAGE_PIXELS},
    "crop_size": {"height": IMAGE_PIXELS, "width": IMAGE_PIXELS},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}
PROCESSOR = {
    "processor_class": "LlavaProcessor",
    "image_token": IMAGE_TOKEN,
    "patch_size": PATCH_PIXELS,
    "num_additional_image_tokens": 1,
    "vision_feature_select_strategy": "default",
}


def vision_settings() -> dict[str, Any]:
    """Return what a model's configuration says of images."""
    from transformers import CLIPVisionConfig  # noqa: PLC0415

    encoder = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
    )
    return {
        "vision_config": encoder,
        "image_token_id": IMAGE_TOKEN_ID,
        "image_seq_length": IMAGE_TOKENS,
        "tie_word_embeddings": True,
    }


def finish(folder: Path) -> None:
    """Write how images and texts become a prompt into a model's folder, and call the encoder's weights as vLLM does.

    transformers 5 saves them under a shorter prefix than the checkpoints of CLIP have.
    """
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    weights = folder / "model.safetensors"
    named = {
        name.replace("vision_tower.", "vision_tower.vision_model."): each for name, each in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPARED, indent=2))
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR, indent=2))
