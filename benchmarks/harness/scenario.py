"""One document through two engines: computed by A, pulled by B, and what B gives when it is on its own.

    A  cold            A computes the document
    B  pulled          B pulls its blocks out of A's cache and computes the rest
    B  local           B finds them in its own cache
    B  cold, local     once more, after B forgot everything and with pulling off: what B would have answered alone

The last two are what the pulled answer is checked against. *Bit for bit* against B's own local hit: both computed the
same few tokens on top of a cache. Against B's cold run only nearly: there the engine runs other matrix shapes, which
round otherwise, and B's own local hit is off by just as much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.harness.client import Client, Completion, Difference, Metrics, compare
from benchmarks.harness.engine import Engine
from benchmarks.harness.report import mebibytes, milliseconds, rate, table
from ghostcacher_connector.core.types import MissReason

PUBLISH_DEADLINE_S = 60.0
NUDGE_TOKENS = 3
"""Length of a prompt that only makes the engine take a step, and so report its statistics: under one block."""


class NotShared(RuntimeError):
    """The engines did not share what they should have; the message says what was seen."""


class PullNumbers(NamedTuple):
    """What B's own metrics say about one pull."""

    tokens: int
    bytes: int
    seconds: float
    misses: dict[str, float]


class Sharing(NamedTuple):
    """The answers and measurements of one document."""

    cold: Completion
    pulled: Completion
    local: Completion
    alone_cold: Completion
    alone_local: Completion
    pull: PullNumbers

    @property
    def against_local(self) -> Difference:
        """The pulled answer against B's own local hit, which it must equal to the last bit."""
        return compare(self.alone_local, self.pulled)

    @property
    def against_cold(self) -> Difference:
        """The pulled answer against B's computing everything."""
        return compare(self.alone_cold, self.pulled)

    @property
    def rounding(self) -> Difference:
        """B's own local hit against B's computing everything: what rounding alone does."""
        return compare(self.alone_cold, self.alone_local)


def nudge(client: Client) -> None:
    """Make the engine take a step: its statistics come with the step after what they count."""
    client.complete([NUDGE_TOKENS] * NUDGE_TOKENS, max_tokens=2, pull=False)


def wait_until_joined(engines: Sequence[Engine], *, deadline_s: float = 60.0) -> None:
    """Return when each engine sees all the others. Raises NotShared, with what to look at."""
    deadline = time.monotonic() + deadline_s
    for engine in engines:
        while True:
            nudge(engine.client)
            found = engine.client.metrics().sum("gc_peers_live")
            if found >= len(engines) - 1:
                break
            if time.monotonic() > deadline:
                raise NotShared(
                    f"engine {engine.options.name} sees {found:.0f} peers after {deadline_s:.0f} s, expected "
                    f"{len(engines) - 1}; `ghostcacher doctor` says why, and so does {engine.log}"
                )
            time.sleep(0.1)


def warm_up(engine: Engine, prompt: Sequence[int]) -> None:
    """Let an engine do once what it does slowly the first time; leaves its cache empty."""
    engine.client.complete(prompt, max_tokens=2, pull=False)
    engine.client.reset_prefix_cache()


def compute_and_publish(
    engine: Engine, prompt: Sequence[int], *, max_tokens: int, window_blocks: int = 0
) -> Completion:
    """Complete a prompt that is new to the fleet, and return when the index holds its blocks.

    window_blocks: of them, at most, are entered once more, in a KV cache group with windows.
    """
    client = engine.client
    before = published(client)
    answer = client.complete(prompt, max_tokens=max_tokens, pull=False)
    blocks = len(prompt) // block_tokens(client.metrics())
    wait_until_published(engine, before, blocks + min(blocks, window_blocks))
    return answer


def published(client: Client) -> float:
    """Return how many entries an engine has made in the index up to now."""
    return client.metrics().sum("gc_published_entries_total")


def wait_until_published(engine: Engine, before: float, count: int) -> None:
    """Return when an engine has made `count` more entries than `before`. Raises NotShared."""
    deadline = time.monotonic() + PUBLISH_DEADLINE_S
    while published(engine.client) < before + count:
        if time.monotonic() > deadline:
            raise NotShared(
                f"engine {engine.options.name} published less than {count} blocks in "
                f"{PUBLISH_DEADLINE_S:.0f} s; see {engine.log}"
            )
        nudge(engine.client)


def share(a: Engine, b: Engine, prompt: Sequence[int], *, max_tokens: int = 16, window_blocks: int = 0) -> Sharing:
    """Run the scenario of the module's docstring for one document that neither engine has seen.

    window_blocks: see `compute_and_publish`.
    """
    cold = compute_and_publish(a, prompt, max_tokens=max_tokens, window_blocks=window_blocks)
    client = b.client
    before = client.metrics()
    pulled = client.complete(prompt, max_tokens=max_tokens)
    nudge(client)
    after = client.metrics()
    local = client.complete(prompt, max_tokens=max_tokens)
    client.reset_prefix_cache()
    alone_cold = client.complete(prompt, max_tokens=max_tokens, pull=False)
    alone_local = client.complete(prompt, max_tokens=max_tokens, pull=False)
    return Sharing(cold, pulled, local, alone_cold, alone_local, pull_numbers(before, after))


def pull_numbers(before: Metrics, after: Metrics) -> PullNumbers:
    """Return what was pulled between two readings of an engine's metrics."""

    def grown(name: str) -> float:
        return after.sum(name) - before.sum(name)

    misses = after.by("gc_cache_misses_total", "reason")
    earlier = before.by("gc_cache_misses_total", "reason")
    return PullNumbers(
        tokens=round(grown("gc_tokens_cached_total")),
        bytes=round(grown("gc_pulled_bytes_total")),
        seconds=grown("gc_pull_seconds_sum"),
        misses={why: n - earlier.get(why, 0.0) for why, n in misses.items() if n > earlier.get(why, 0.0)},
    )


def block_tokens(page: Metrics) -> int:
    """Return the engine's block size, in tokens, from its metrics page."""
    for (name, labels), _ in page.samples.items():
        if name == "vllm:cache_config_info":
            return int(dict(labels)["block_size"])
    raise NotShared("vllm:cache_config_info: expected it on the engine's metrics page, found none")


def ratio(one: float, other: float) -> str:
    """Return one/other as "3.4x"."""
    return f"{one / other:.1f}x" if other > 0 and math.isfinite(one) else "-"


def timing_table(result: Sharing) -> str:
    rows = [
        ("A, cold", result.cold, "computed everything"),
        ("B, pulled", result.pulled, "took A's blocks" if result.pull.tokens else "pulled nothing"),
        ("B, local hit", result.local, "had them itself by then"),
        ("B, cold", result.alone_cold, "pulling off, cache emptied"),
    ]
    base = result.alone_cold.ttft_s
    lines = [
        [who, f"{c.prompt_tokens:,}", f"{c.cached_tokens or 0:,}", milliseconds(c.ttft_s), ratio(base, c.ttft_s), what]
        for who, c, what in rows
    ]
    return table(["request", "prompt tokens", "from a cache", "TTFT", "against B cold", "what the engine did"], lines)


def pull_line(result: Sharing) -> str:
    pull = result.pull
    part = pull.seconds / result.alone_cold.ttft_s
    return (
        f"the pull: {pull.tokens:,} tokens, {mebibytes(pull.bytes)} in {milliseconds(pull.seconds)} "
        f"with the seal check ({rate(pull.bytes, pull.seconds)}), {part:.1%} of B's cold TTFT"
    )


def verdict(result: Sharing) -> bool:
    """Print whether the pulled answer is the one that B gives by itself, and return it."""
    local, cold, rounding = result.against_local, result.against_cold, result.rounding
    if result.pull.tokens == 0:
        print(f"FAILED: B pulled nothing. Blocks missed, by reason: {result.pull.misses or 'none counted'}")
        if MissReason.SLOWER_THAN_RECOMPUTE.value in result.pull.misses:
            print("Computing them was forecast to be faster, as with a small model on a fast machine: try a larger one")
        return False
    right = local.identical and cold.logprob_max <= rounding.logprob_max
    print(
        f"{'RIGHT' if right else 'WRONG'}: {len(result.pulled.tokens)} greedy tokens and their log-probabilities, "
        "pulled against B's own:\n"
        f"  local hit: tokens {_same(local.same_tokens)}, largest difference {local.logprob_max:g}\n"
        f"  cold: tokens {_same(cold.same_tokens)}, largest difference {cold.logprob_max:.4f} "
        f"(B's own local hit: {rounding.logprob_max:.4f}, rounding)"
    )
    return right


def _same(equal: bool) -> str:
    return "equal" if equal else "differ"
