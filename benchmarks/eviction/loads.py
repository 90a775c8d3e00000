"""Requests as lists of block numbers: of a trace in Mooncake's format, or made."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ghostcacher_connector.core.errors import ConfigError


class Prompt(NamedTuple):
    """One request: when it came, in seconds, and its blocks in prefix order. Equal numbers are equal prefixes."""

    at_s: float
    blocks: Sequence[int]


class Load(NamedTuple):
    name: str
    prompts: Sequence[Prompt]

    @property
    def block_count(self) -> int:
        return sum(len(prompt.blocks) for prompt in self.prompts)


def of_trace(path: Path, first: int, last: int | None) -> Load:
    """Read requests ``[first, last)`` of a trace. Raises ConfigError for a file that is none."""
    try:
        with path.open() as lines:
            entries = [json.loads(line) for line in islice(lines, first, last)]
        prompts = [
            Prompt(float(entry["timestamp"]) / 1e3, [int(one) for one in entry["hash_ids"]]) for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"trace {path}: expected JSON lines with timestamp and hash_ids, got {exc!r}") from exc
    if not prompts:
        raise ConfigError(f"trace {path}: expected more than {first} requests, got none")
    part = f" {first}:{'' if last is None else last}" if first or last else ""
    return Load(path.stem + part, prompts)


def documents(count: int, blocks: int, requests: int) -> Load:
    """Questions of one block each on documents that are all equally likely, one a second."""
    chance = random.Random(1)
    prompts = []
    for number in range(requests):
        first = chance.randrange(count) * blocks
        question = count * blocks + number
        prompts.append(Prompt(float(number), [*range(first, first + blocks), question]))
    return Load(f"{count} documents of {blocks}", prompts)


def sessions(requests: int) -> Load:
    """Sessions of one to ten turns of 4 blocks, half a minute apart in the mean; twenty begin in a minute.

    Each begins with the same 4 blocks.
    """
    chance = random.Random(2)
    turns: list[tuple[float, int, int]] = []
    started_s, session = 0.0, 0
    while len(turns) < requests:
        started_s += chance.expovariate(1 / 3)
        at_s, session = started_s, session + 1
        for turn in range(chance.randint(1, 10)):
            turns.append((at_s, session, turn))
            at_s += chance.expovariate(1 / 30)
    shared = list(range(4))
    return Load(
        "sessions",
        [
            Prompt(at_s, shared + [1_000 * session + block for block in range(4 * (turn + 1))])
            for at_s, session, turn in sorted(turns)[:requests]
        ],
    )


def with_scan(load: Load, every: int, blocks: int) -> Load:
    """Put a prompt that never comes again between every so many requests of a load."""
    prompts: list[Prompt] = []
    fresh = 1 << 40
    for number, prompt in enumerate(load.prompts):
        prompts.append(prompt)
        if number % every == 0:
            prompts.append(Prompt(prompt.at_s, range(fresh, fresh + blocks)))
            fresh += blocks
    return Load(f"{load.name}, scan", prompts)
