"""Real engines on one real Redis, and what the end-to-end tests ask of them.

Each test looks at the engines' own counters, too: a test in which nothing was pulled proves nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    Client,
    Completion,
    Documents,
    Engine,
    EngineOptions,
    RedisServer,
    compare,
    start_many,
    stop_all,
)
from benchmarks.harness.sglang import SglangClient, SglangOptions
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.redis.url import make_client, parse_redis_url
from ghostcacher_connector.core.types import WorkerRecord
from tests.support.redis_proxy import Proxy

CONNECTOR = {"pull": "always", "redis_timeout_s": 3.0, "lookup_deadline_ms": 5000.0}
"""Pull whatever is there, and be patient with Redis: two cores carry everything."""

BLOCK_TOKENS = 32
REQUEST_TIMEOUT_S = 90.0
"""Bound of one request of a client. A pull ends after 5 s, whatever happens; the rest is for a busy machine."""

WARM_UP_S = 300.0
EVENT_TIMEOUT_S = 45.0
POLL_S = 0.05

DIRECTORY_S = 1.0
"""How often an engine looks at the records of its peers. A request takes a quarter of that on an idle machine."""

FORGED_TTL_S = 20
"""Of a record that a test writes in place of a stopped engine's own: long enough for readers to look at it, and over
before anybody gives up waiting for the owner, who does not replace what seems to be a later life of itself."""

DTYPE = "float32"
"""Other matrix shapes round otherwise, and how much depends on the processor: in bfloat16, answers to one prompt lay
0.15 apart on one processor and not at all on another, and a single wrong block may move an answer by less. In float32,
rounding is thousands of times smaller than what a wrong block does."""

TOLERANCE = 0.005
"""Between any two right computations of a log-probability; mostly the difference is 0. test_reuse.py checks that a
single wrong block moves an answer by more."""

_seeds = itertools.count(1)


def until(condition: Callable[[], Any], what: str, *, timeout_s: float = EVENT_TIMEOUT_S) -> Any:
    """Return the first true value of a condition; raise AssertionError, saying what was awaited, at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(POLL_S)
    return value


class Fleet:
    """Engines by name, on one Redis."""

    def __init__(
        self, redis: RedisServer, engines: Sequence[Engine], documents: Documents, index_lag_s: float = 0.0
    ) -> None:
        self.redis = redis
        self._index_lag_s = index_lag_s
        self.engines = {engine.options.name: engine for engine in engines}
        self.models: dict[str, str] = {}
        """By the name of an engine: the model that its requests name, where that is not its own, such as an adapter."""
        self.index = RedisIndex(redis.url, timeout_s=10.0)
        self._raw = make_client(parse_redis_url(redis.url), 10.0)
        self._documents = documents
        self.window_blocks = 0
        """How many blocks of a prompt have an entry in a second KV cache group, too: vLLM keeps the last ones alone."""

    def client(self, name: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> Client:
        engine = self.engines[name]
        model = self.models.get(name, engine.options.served_name)
        return type(engine.client)(engine.url, model=model, timeout_s=timeout_s)

    def document(self, tokens: int) -> list[int]:
        """Return a prompt of exactly this many tokens that nobody has seen."""
        return self._documents.tokens(tokens, seed=next(_seeds))

    def text(self, tokens: int) -> str:
        """Return a text of about this many tokens that nobody has seen."""
        return self._documents.text(tokens, seed=next(_seeds))

    def record(self, name: str) -> WorkerRecord | None:
        """Return the live record of a worker, as peers see it."""
        return next((record for record in self.index.workers() if record.worker == name), None)

    def worker(self, name: str) -> WorkerRecord:
        """Return the record of a worker that must be there."""
        record = self.record(name)
        assert record is not None, f"worker {name} has no live record"
        return record

    def block_tokens(self, name: str) -> int:
        """Return how many tokens fill a block of this engine."""
        options = self.engines[name].options
        return options.page_tokens if isinstance(options, SglangOptions) else options.block_size or BLOCK_TOKENS

    def blocks_key(self, name: str) -> str:
        """Return the Redis key that holds the entries of a worker's present life."""
        record = self.record(name)
        assert record is not None, f"worker {name} has no live record"
        return schema.blocks_key(record.namespace, 0, record.incarnation)

    def entries(self, name: str) -> dict[bytes, bytes]:
        """Return what the index holds of a worker: chain hash -> packed location. Empty when it is not there."""
        if self.record(name) is None:
            return {}
        return self.raw(lambda client: client.hgetall(self.blocks_key(name)))

    def raw(self, command: Callable[[Any], Any]) -> Any:
        """Run a command of redis-py past all our code."""
        return command(self._raw)

    def compute(self, name: str, prompt: Sequence[int], *, max_tokens: int = 8) -> Completion:
        """Complete a prompt that is new to the fleet, and return once the index holds its full blocks."""
        before = self.settled_entries(name)
        answer = self.client(name).complete(prompt, max_tokens=max_tokens, pull=False)
        tokens = self.block_tokens(name)
        # In pages of one token, what it has in common with others (its first words) is there already.
        self.wait_published(name, before, len(prompt) // tokens if tokens > 1 else len(prompt) // 2)
        return answer

    def settled_entries(self, name: str) -> Mapping[bytes, bytes]:
        """Return what the index has of a worker once no earlier change is on its way there: an index may lag."""
        if not self._index_lag_s:
            return self.entries(name)

        def settled() -> list[Mapping[bytes, bytes]]:
            found = self.entries(name)
            time.sleep(2 * self._index_lag_s)
            return [found] if self.entries(name) == found else []

        return until(settled, f"no more changes of {name} in the index")[0]

    def wait_published(
        self, name: str, before: Mapping[bytes, bytes], count: int, *, prompt_blocks: int | None = None
    ) -> None:
        """Return once the index holds `count` blocks of a worker that were not in it before, with their last window.

        prompt_blocks: how many of them are the prompt's, at whose end the window is; None: all.
        """
        wanted = count + min(count if prompt_blocks is None else prompt_blocks, self.window_blocks)
        until(lambda: len(self.entries(name).keys() - before.keys()) >= wanted, f"{wanted} more entries of {name}")

    def recompute(self, name: str, prompt: Sequence[int], *, max_tokens: int = 8) -> Completion:
        """Complete a prompt without any cache: a salt of its own, and no pull."""
        salt = f"alone-{next(_seeds)}"
        return self.client(name).complete(prompt, max_tokens=max_tokens, pull=False, cache_salt=salt)

    def assert_right(
        self, name: str, answer: Completion, prompt: Sequence[int], *, tolerance: float = TOLERANCE
    ) -> None:
        """Assert that an answer is the one that the engine gives without the fleet.

        That is the one computed from nothing or, where a prefix was cached, the one on top of its own cache: they
        differ by rounding, and the answer must equal one of them.
        """
        salt, count = f"alone-{next(_seeds)}", len(answer.tokens)
        cold, warm = [
            self.client(name).complete(prompt, max_tokens=count, pull=False, cache_salt=salt, ignore_eos=True)
            for _ in range(2)
        ]
        nearest = min((cold, warm), key=lambda reference: compare(answer, reference).logprob_max)
        assert_same(answer, nearest, tolerance=tolerance)

    def counters(self, name: str) -> Counters:
        return Counters(self.client(name))

    def prime(self, reader: str, owner: str) -> None:
        """Return once `reader` has pulled from `owner`: every rank knows the way."""
        deadline = time.monotonic() + EVENT_TIMEOUT_S
        while True:
            counters, prompt = self.counters(reader), self.document(max(self.block_tokens(owner), BLOCK_TOKENS) + 1)
            self.compute(owner, prompt, max_tokens=1)
            self.client(reader).complete(prompt, max_tokens=2)
            if counters.grown("gc_cache_hits_total"):
                return
            assert time.monotonic() < deadline, f"{reader} does not pull from {owner}: {counters.reasons()}"

    def log_tails(self) -> Iterator[tuple[str, str]]:
        for name, engine in self.engines.items():
            yield name, engine.process.log_tail(40)


class Counters:
    """An engine's counters, from now on."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._before = client.metrics()

    def grown(self, name: str, **labels: str) -> float:
        """Return by how much a counter has grown. A step is taken first: statistics come with the step after."""
        nudge(self._client)
        return self._client.metrics().sum(name, **labels) - self._before.sum(name, **labels)

    def reach(self, name: str, count: float, **labels: str) -> None:
        """Wait until a counter has grown by at least `count`."""
        seen: list[float] = []

        def reached() -> bool:
            seen.append(self.grown(name, **labels))
            return seen[-1] >= count

        try:
            until(reached, f"{name}{labels or ''} to grow by {count}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it grew by {seen[-1]}; misses: {self.reasons()}") from exc

    def reasons(self) -> dict[str, float]:
        """Return the misses since then, by reason."""
        now = self._client.metrics().by("gc_cache_misses_total", "reason")
        then = self._before.by("gc_cache_misses_total", "reason")
        return {why: count - then.get(why, 0.0) for why, count in now.items() if count > then.get(why, 0.0)}

    def hits(self) -> float:
        return self.grown("gc_cache_hits_total")

    def misses(self) -> float:
        return self.grown("gc_cache_misses_total")


def nudge(client: Client) -> None:
    """Let the engine show what it has counted: vLLM does with a step, here of a prompt under one block."""
    if isinstance(client, SglangClient):
        client.settle()
        return
    client.complete([3, 3, 3], max_tokens=2, pull=False)


def assert_same(answer: Completion, reference: Completion, *, tolerance: float = 0.0) -> None:
    """Assert that two answers agree, token by token and in their log-probabilities.

    With a tolerance, greedy tokens may part where two of them are equally likely, which the distance covers.
    """
    assert answer.tokens, "no tokens came back"
    assert len(answer.tokens) == len(reference.tokens)
    assert len(answer.logprobs) == len(answer.tokens)
    found = compare(answer, reference)
    assert found.logprob_max <= tolerance, f"{found}: {answer} is not {reference}"
    if tolerance == 0.0:
        assert found.same_tokens


def assert_different(answer: Completion, reference: Completion) -> None:
    assert compare(answer, reference).logprob_max > TOLERANCE, "two answers that should differ are equal"


@contextmanager
def running(
    model: Path,
    engines: Mapping[str, Mapping[str, Any]],
    *,
    log_dir: Path,
    connector: Mapping[str, Any] | None = None,
    index_lag_s: float = 0.0,
) -> Iterator[Fleet]:
    """Start a Redis and engines of these names side by side; yield them warm; leave nothing behind.

    engines: name -> changes to the options; `engine: sglang` makes it one of SGLang.
    connector: settings of all of them, over CONNECTOR.
    index_lag_s: how long the index takes to learn of what they publish and withdraw.
    """
    with RedisServer(tcp=index_lag_s > 0) as redis, Proxy(redis.port, apply_lag_s=index_lag_s) as lagging:
        url = lagging.url if index_lag_s else redis.url
        options = [_options(model, url, name, changes, connector or {}, log_dir) for name, changes in engines.items()]
        started = start_many(options)
        try:
            fleet = Fleet(redis, started, Documents(model), index_lag_s)
            warm_up(fleet, list(engines))
            for name in engines:
                until(lambda name=name: fleet.record(name), f"the record of {name} in Redis")
            yield fleet
        finally:
            stop_all(started)


def warm_up(fleet: Fleet, names: Sequence[str]) -> None:
    """Let engines do once what is slow the first time, one after the other.

    The ranks of an engine wait for each other by spinning: two engines of two ranks that start computing together on
    two cores keep each other from ever getting anywhere.
    """
    prompt = fleet.document(3 * BLOCK_TOKENS)
    for name in names:
        fleet.client(name, timeout_s=WARM_UP_S).complete(prompt, max_tokens=2, pull=False)


def _options(
    model: Path,
    redis_url: str,
    name: str,
    changes: Mapping[str, Any],
    connector: Mapping[str, Any],
    log_dir: Path,
) -> EngineOptions | SglangOptions:
    settings = {**CONNECTOR, "redis_url": redis_url, "worker_id": name, **connector, **changes.get("connector", {})}
    common = {"model": str(model), "name": name, "log_dir": log_dir, "ready_timeout_s": 400.0, "connector": settings}
    if changes.get("engine") == "sglang":
        changed = {key: value for key, value in changes.items() if key not in ("connector", "engine")}
        return SglangOptions(**{**common, **changed})
    defaults: dict[str, Any] = {
        "block_size": BLOCK_TOKENS,
        "num_blocks": 256,
        "max_model_len": 4096,
        "dtype": DTYPE,
    }
    return EngineOptions(**{**common, **defaults, **changes, "connector": settings})
