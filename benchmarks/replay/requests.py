"""Requests to replay: of a trace in Mooncake's format, of one in Azure's, or questions on synthetic documents.

All prompts consist of segments of 512 tokens, of which equal ones have equal ids, as in Mooncake's traces.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_simulator.engine import TokenizedPrompt
from ghostcacher_simulator.text import TOKEN_BYTES, text_of

BLOCK_TOKENS = 512
PROMPT_TOKENS_MAX = 32_768
"""What is longer is cut: engines of a few thousand blocks could hold hardly two of such prompts."""

SPREAD_S = 3.0
"""Mooncake's traces round arrivals to so much: they are spread over it at random."""

FORMATS = (
    "JSON lines with timestamp, input_length, output_length and hash_ids, "
    "or a CSV with TIMESTAMP, ContextTokens and GeneratedTokens"
)

QUESTION_TOKENS = 200
ANSWER_TOKENS = (8, 200)
SEEDS = {"spread": 11, "documents": 1}


class Request(NamedTuple):
    """One request. arrival_s: from the first one's arrival. segments: ids of its text's pieces of `BLOCK_TOKENS`."""

    request_id: str
    arrival_s: float
    segments: tuple[str, ...]
    prompt: TokenizedPrompt

    def text(self) -> bytes:
        """Return the text of its prompt."""
        return b"".join(map(_segment, self.segments))[: self.prompt.tokens * TOKEN_BYTES]


class Row(NamedTuple):
    """What a trace says of a request. segments: None, when it says nothing of the text."""

    at_s: float
    tokens: int
    answer_tokens: int
    segments: Sequence[object] | None


def from_file(path: Path, count: int, speed: float) -> list[Request]:
    """Return the first `count` requests of a trace, `speed` times as fast. Raises ConfigError for another format."""
    rows = _azure(path) if path.suffix == ".csv" else _mooncake(path)
    try:
        requests = _requests(islice(rows, count), speed)
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"trace {path}: expected {FORMATS}, got {type(exc).__name__}: {exc}") from exc
    if not requests:
        raise ConfigError(f"trace {path}: expected at least one request, got none")
    return requests


def from_documents(documents: int, blocks: int, count: int, rate_per_s: float) -> list[Request]:
    """Return questions on documents of so many blocks, each document as likely as another, at random times."""
    rng, at_s, rows = Random(SEEDS["documents"]), 0.0, []
    for number in range(count):
        document = rng.randrange(documents)
        at_s += rng.expovariate(rate_per_s)
        segments = [*(f"{document}/{place}" for place in range(blocks)), f"question {number}"]
        answer_tokens = int(rng.uniform(*ANSWER_TOKENS))
        rows.append(Row(at_s, blocks * BLOCK_TOKENS + QUESTION_TOKENS, answer_tokens, segments))
    return _requests(rows, speed=1.0)


def _requests(rows: Iterable[Row], speed: float) -> list[Request]:
    requests: list[Request] = []
    known: dict[tuple[BlockHash, str], BlockHash] = {}
    first_at_s = 0.0
    for number, row in enumerate(rows):
        first_at_s = first_at_s if number else row.at_s
        tokens = min(row.tokens, PROMPT_TOKENS_MAX)
        pieces = -(-tokens // BLOCK_TOKENS)
        ids = row.segments if row.segments is not None else [f"request {number}/{place}" for place in range(pieces)]
        if not 0 < pieces <= len(ids):
            raise ValueError(f"request {number} has {row.tokens} tokens in {len(ids)} segments of {BLOCK_TOKENS}")
        segments = tuple(map(str, ids[:pieces]))
        parent, blocks = b"", []
        for segment in segments[: tokens // BLOCK_TOKENS]:
            parent = known.setdefault((parent, segment), hashlib.blake2b(parent + segment.encode()).digest()[:32])
            blocks.append(parent)
        prompt = TokenizedPrompt(tuple(blocks), tokens, max(1, row.answer_tokens))
        requests.append(Request(f"q{number}", (row.at_s - first_at_s) / speed, segments, prompt))
    return requests


def _mooncake(path: Path) -> Iterator[Row]:
    rng = Random(SEEDS["spread"])
    with path.open() as lines:
        for line in lines:
            entry = json.loads(line)
            at_s = entry["timestamp"] / 1e3 + rng.random() * SPREAD_S
            yield Row(at_s, int(entry["input_length"]), int(entry["output_length"]), entry["hash_ids"])


def _azure(path: Path) -> Iterator[Row]:
    with path.open(newline="") as lines:
        for entry in csv.DictReader(lines):
            # Seven digits of a second, one more than Python takes.
            at_s = datetime.fromisoformat(entry["TIMESTAMP"][:26]).timestamp()
            yield Row(at_s, int(entry["ContextTokens"]), int(entry["GeneratedTokens"]), None)


@lru_cache(maxsize=4_096)
def _segment(name: str) -> bytes:
    return text_of(name, BLOCK_TOKENS)
