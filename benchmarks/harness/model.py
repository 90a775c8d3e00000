"""Small random-weight models, so that real engines can run anywhere without downloading anything.

A model is a seeded Qwen3, or one of another kind (model_weights.py), with a byte-level BPE trained on the Python
standard library's sources. It talks nonsense, but it is a real model to the engine: same kernels, same KV layout, same
scheduler. Compare log-probabilities, never only text: a random model may well repeat one token.

Models live outside the source tree, in ``$GHOSTCACHER_CACHE`` or ``~/.cache/ghostcacher``, one folder for each set of
parameters. A folder appears in one rename, complete, so that two processes may build the same model at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

from benchmarks.harness.model_recipe import Kind, Recipe, Size, recipe
from benchmarks.harness.model_vision import IMAGE_TOKEN, finish
from benchmarks.harness.model_weights import build_weights

TRAINING_BYTES_MAX = 6 << 20
"""Of source text for the tokenizer: enough for 16k merges, trained in seconds."""

HUGGING_FACE_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ModelNotFound(RuntimeError):
    """What was given as a model is neither a model's folder nor a Hugging Face id; the message says what it is."""


def require_model(name: str) -> str:
    """Return a model that was given, if it can be one: a folder with config.json, or a Hugging Face id.

    Raises ModelNotFound at once, before anything slow looks at it. Whether an id exists is not checked.
    """
    if Path(name).is_dir():
        found = None if (Path(name) / "config.json").is_file() else "a folder without config.json"
    elif Path(name).exists():
        found = "a file"
    else:
        found = None if HUGGING_FACE_ID.fullmatch(name) else "a path at which nothing is"
    if found is not None:
        raise ModelNotFound(
            f"model {name!r}: expected a folder with config.json, or a Hugging Face id such as Qwen/Qwen3-0.6B; "
            f"this is {found}"
        )
    return name


def default_cache_dir() -> Path:
    """Return where models are kept: ``$GHOSTCACHER_CACHE``, else ``~/.cache/ghostcacher``."""
    configured = os.environ.get("GHOSTCACHER_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "ghostcacher"


def ensure_model(size: Size, cache_dir: Path | None = None, *, seed: int = 0, kind: Kind = "qwen3") -> Path:
    """Return the folder of a model, building it first if it is not there (seconds)."""
    plan = recipe(size, seed=seed, kind=kind)
    name = size if kind == "qwen3" else f"{size}-{kind}"
    target = (cache_dir or default_cache_dir()) / "models" / f"{name}-seed{seed}-{plan.digest()}"
    if not target.exists():
        _build_and_rename(plan, target)
    return target


def _build_and_rename(plan: Recipe, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        _build(plan, scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.exists():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build(plan: Recipe, folder: Path) -> None:
    special = _build_tokenizer(plan, folder)
    build_weights(plan, folder, eos_token_id=special["<|im_end|>"])
    if plan.kind == "images":
        finish(folder)
    (folder / "recipe.json").write_bytes(msgspec.json.format(msgspec.json.encode(plan)))


def _build_tokenizer(plan: Recipe, folder: Path) -> dict[str, int]:
    """Train and save the tokenizer; return the ids of its special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *([IMAGE_TOKEN] if plan.kind == "images" else [])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocab,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_limited(standard_library_texts(), TRAINING_BYTES_MAX), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": names,
        "model_max_length": plan.max_position,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return {name: index for index, name in enumerate(names)}  # trainers number special tokens first


def standard_library_texts() -> Iterator[str]:
    """Yield the standard library's modules (top level only), in order of name: real text that is there everywhere."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


def _limited(texts: Iterator[str], bytes_max: int) -> Iterator[str]:
    left = bytes_max
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


def main() -> int:
    """Build a model and print where it is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("size", choices=get_args(Size))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=get_args(Kind), default="qwen3")
    arguments = parser.parse_args()
    print(ensure_model(arguments.size, seed=arguments.seed, kind=arguments.kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
