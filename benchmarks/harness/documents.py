"""Prompts of an exact length in tokens: real text, different for each seed, so that no two share a prefix."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from benchmarks.harness.model import standard_library_texts

CHARACTERS_PER_TOKEN_MAX = 12
"""Of this text and any usual tokenizer there are 3 to 5; more than enough is cut."""


class Documents:
    """Makes prompts for one model, with its own tokenizer."""

    def __init__(self, model: str | Path) -> None:
        """model: folder or Hugging Face id."""
        from transformers import AutoTokenizer  # noqa: PLC0415

        self._tokenizer = AutoTokenizer.from_pretrained(str(model))

    def tokens(self, count: int, *, seed: int) -> list[int]:
        """Return a document of exactly `count` tokens. Other seeds give other first lines."""
        corpus = _corpus()
        start = random.Random(seed).randrange(len(corpus))
        text = (corpus[start:] + corpus)[: count * CHARACTERS_PER_TOKEN_MAX]
        ids = list(self._tokenizer.encode(f"{seed:016x} Document {seed}\n{text}", add_special_tokens=False))
        while len(ids) < count:
            ids += ids
        return ids[:count]

    def text(self, count: int, *, seed: int) -> str:
        """Return a document of about `count` tokens, as text."""
        return str(self._tokenizer.decode(self.tokens(count, seed=seed)))

    def encode(self, text: str) -> list[int]:
        """Return the tokens that an engine makes of a text."""
        return list(self._tokenizer.encode(text))


@cache
def _corpus() -> str:
    return "\n".join(standard_library_texts())
