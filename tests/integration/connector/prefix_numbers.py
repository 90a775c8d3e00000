"""What each token's KV must be in a simulated engine: a number that identifies the token's whole prefix."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

BLOCK_TOKENS = 16
VOCABULARY = 1000
MODULUS = (1 << 61) - 1


def prefix_number(previous: int, token: int, position: int, weight: int = 0) -> int:
    """Return a number that identifies the tokens up to this one, and the weights that they were computed with."""
    return (previous * 1_000_003 + token * 7919 + position + 1 + weight * 15_485_863) % MODULUS


@dataclass
class RunnerRequest:
    """What the model runner knows of a request: tokens, block table, numbers of its prefixes."""

    tokens: list[int]
    blocks: list[int]
    weight: Callable[[], int] = lambda: 0
    """Returns the weight of the model at present."""
    lora: Any = None
    """vLLM's request for its adapter; None without one."""
    numbers: list[int] = field(default_factory=list)

    def number(self, position: int) -> int:
        while len(self.numbers) <= position:
            at = len(self.numbers)
            self.numbers.append(prefix_number(self.numbers[-1] if at else 0, self.tokens[at], at, self.weight()))
        return self.numbers[position]


def expected_output(tokens: list[int], count: int, weight: int = 0) -> list[int]:
    """Return what a request must sample, computed from its tokens alone."""
    state = RunnerRequest(list(tokens), [], lambda: weight)
    for _ in range(count):
        state.tokens.append(state.number(len(state.tokens) - 1) % VOCABULARY)
    return state.tokens[len(tokens) :]


def tokens_of(seed: int, count: int) -> list[int]:
    """Return a prompt of pseudo-random tokens, the same for the same seed."""
    source = random.Random(seed)
    return [source.randrange(VOCABULARY) for _ in range(count)]


def prompts(seed: int, *, documents: int, blocks: int, tail: int) -> Iterator[list[int]]:
    """Yield endless prompts that share one of a few documents and differ in their tails."""
    source = random.Random(seed)
    texts = [[source.randrange(VOCABULARY) for _ in range(blocks * BLOCK_TOKENS)] for _ in range(documents)]
    while True:
        text = source.choice(texts)
        cut = source.randrange(1, blocks) * BLOCK_TOKENS + source.randrange(BLOCK_TOKENS)
        yield text[:cut] + [source.randrange(VOCABULARY) for _ in range(source.randrange(1, tail))]
