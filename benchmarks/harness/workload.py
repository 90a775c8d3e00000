"""A load of many questions on few long documents, and the simple ways to spread it over engines.

This is the load that a shared cache is for: agents with long system prompts, questions on documents, chats. Popularity
is uneven (Zipf), as it is in the field. Every policy gets the same shape of load, over documents that no engine knows.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.harness.client import Client, Completion, run_concurrently
from benchmarks.harness.documents import Documents
from benchmarks.harness.report import percentile

HASHED_CHARACTERS = 1024
"""Of a prompt, for consistent hashing: within the document, far before the question."""
RING_POINTS = 64


class Load(NamedTuple):
    """prompts: in the order in which they are asked. documents: index of each prompt's document."""

    prompts: list[str]
    documents: list[int]


class Result(NamedTuple):
    """What a load cost, and what was answered, in the order of the questions. seconds: until all was answered."""

    policy: str
    answers: list[Completion]
    seconds: float

    @property
    def prompt(self) -> int:
        """Tokens of all prompts."""
        return sum(answer.prompt_tokens for answer in self.answers)

    @property
    def computed(self) -> int:
        """Tokens of all prompts that did not come from a cache."""
        return self.prompt - sum(answer.cached_tokens or 0 for answer in self.answers)

    @property
    def ttft_s(self) -> list[float]:
        return [answer.ttft_s for answer in self.answers]

    @property
    def hit_ratio(self) -> float:
        """Share of the prompts' tokens that came from a cache, the engine's own or a peer's."""
        return 1 - self.computed / self.prompt if self.prompt else 0.0

    @property
    def p50_s(self) -> float:
        return percentile(self.ttft_s, 50)

    @property
    def p90_s(self) -> float:
        return percentile(self.ttft_s, 90)


def make_load(
    texts: Documents,
    *,
    documents: int,
    document_tokens: int,
    requests: int,
    seed: int,
    order: int | None = None,
    skew: float | None = 0.7,
) -> Load:
    """Return `requests` questions on `documents` documents; the k-th document is asked for as often as k**-skew.

    seed: of the documents' text, and of the order of the questions.
    order: another seed for that order, so that loads on different documents are asked alike.
    skew: None for each document equally often, in random order.
    """
    chosen = random.Random(seed if order is None else order)
    bodies = [texts.text(document_tokens, seed=1000 * seed + index) for index in range(documents)]
    if skew is None:
        asked = [number % documents for number in range(requests)]
        chosen.shuffle(asked)
    else:
        asked = chosen.choices(range(documents), [(index + 1) ** -skew for index in range(documents)], k=requests)
    prompts = [f"{bodies[index]}\n\n# Question {number}: what does line {chosen.randrange(99)} do?\n"
               for number, index in enumerate(asked)]  # fmt: skip
    return Load(prompts, asked)


class Policy:
    """Picks an engine for a prompt. Called from several threads; `left` says that a request has ended."""

    def __init__(self, name: str, clients: Sequence[Client], pick: Callable[[str, Sequence[int]], int]) -> None:
        self.name = name
        self._clients = clients
        self._pick = pick
        self._lock = threading.Lock()
        self._running = [0] * len(clients)

    def take(self, prompt: str) -> int:
        with self._lock:
            index = self._pick(prompt, self._running)
            self._running[index] += 1
            return index

    def left(self, index: int) -> None:
        with self._lock:
            self._running[index] -= 1

    def client(self, index: int) -> Client:
        return self._clients[index]


def round_robin(clients: Sequence[Client]) -> Policy:
    turns = itertools.cycle(range(len(clients)))
    return Policy("round robin", clients, lambda prompt, running: next(turns))  # noqa: ARG005 - one signature for all


def least_load(clients: Sequence[Client]) -> Policy:
    """The engine with the fewest requests of ours; the first one of several."""
    return Policy("least load", clients, lambda prompt, running: running.index(min(running)))  # noqa: ARG005


def consistent_hash(clients: Sequence[Client]) -> Policy:
    """The engine that owns the beginning of the prompt, on a ring; its load plays no part."""
    ring = sorted((_digest(f"{index}/{point}"), index) for index in range(len(clients)) for point in range(RING_POINTS))

    def pick(prompt: str, running: Sequence[int]) -> int:  # noqa: ARG001 - one signature for all
        wanted = _digest(prompt[:HASHED_CHARACTERS])
        return next((index for point, index in ring if point >= wanted), ring[0][1])

    return Policy("consistent hashing", clients, pick)


def through(router: Client) -> Policy:
    """Whatever the router decides."""
    return Policy("GhostCacher", [router], lambda prompt, running: 0)  # noqa: ARG005


def run_load(
    policy: Policy, load: Load, *, concurrency: int, max_tokens: int, pull: bool, progress: Callable[[str], None]
) -> Result:
    """Ask every question, `concurrency` at a time, and return what it cost. pull: False keeps the engines apart."""
    began, done = time.perf_counter(), itertools.count(1)

    def ask(prompt: str) -> Completion:
        index = policy.take(prompt)
        try:
            answer = policy.client(index).complete(prompt, max_tokens=max_tokens, pull=None if pull else False)
        finally:
            policy.left(index)
        progress(f"{policy.name}: {next(done)} of {len(load.prompts)} answered")
        return answer

    answers = run_concurrently(ask, load.prompts, concurrency=concurrency)
    return Result(policy.name, answers, time.perf_counter() - began)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
