"""A simulated engine: requests wait, match their prefix, pull, prefill and decode, in the time of the event loop.

Faults are levers on it: `die` breaks what runs, `hang` stops all computing and reporting but keeps connections open,
`extra_tokens` is work that it claims to have.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from ghostcacher_connector.core.coordination.base import LoadReport, PromptChain
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_simulator.pool import HeldBlock, KvPool
from ghostcacher_simulator.processor import Seat
from ghostcacher_simulator.text import BLOCK_TOKENS, TOKEN_BYTES, block_hashes, sampled_chain


class Refused(Exception):
    """The engine is gone, was gone before it answered, or can never serve the request."""


class Profile(NamedTuple):
    """What an engine can do.

    kv_blocks: slots of its KV pool.
    block_tokens: tokens of a block.
    prefill_tokens_per_s: rate of computing a prompt; prompts are computed one at a time.
    decode_s: time of one output token of a request, whatever else runs.
    arrival_s: from a request's arrival until the scheduler sees it.
    publish_s: from the end of a prefill until peers can pull its blocks.
    block_bytes: KV of one block.
    pull_bytes_per_s, pull_fixed_s: rate of a pull, and its cost whatever its size.
    shares_prefill: whether a prompt finds what another computes at this moment, or only what was done when it came.
    """

    kv_blocks: int = 1 << 20
    block_tokens: int = BLOCK_TOKENS
    prefill_tokens_per_s: float = 10_000.0
    decode_s: float = 0.0
    arrival_s: float = 0.003
    publish_s: float = 0.005
    block_bytes: int = 16_384
    pull_bytes_per_s: float = 1e9
    pull_fixed_s: float = 0.004
    shares_prefill: bool = True


class Sharing(Protocol):
    """An engine's way to the fleet. None of it blocks."""

    def received(self, chain: PromptChain) -> None:
        """A prompt has come."""

    def prefix_at_peers(self, blocks: Sequence[BlockHash]) -> int:
        """Return how many leading blocks a peer holds, as far as it can be known."""

    def computed(self, request_id: str | None, blocks: Sequence[HeldBlock]) -> None:
        """A prompt is computed; None: a part of one. blocks: all of it that the pool still holds, in order."""

    def evicted(self, blocks: Sequence[HeldBlock]) -> None:
        """Blocks are gone from the pool."""


class Alone:
    """The sharing of an engine without a connector."""

    def received(self, chain: PromptChain) -> None:
        pass

    def prefix_at_peers(self, blocks: Sequence[BlockHash]) -> int:  # noqa: ARG002 - whatever is asked for
        return 0

    def computed(self, request_id: str | None, blocks: Sequence[HeldBlock]) -> None:
        pass

    def evicted(self, blocks: Sequence[HeldBlock]) -> None:
        pass


class TokenizedPrompt(NamedTuple):
    """A prompt as an engine's scheduler sees it.

    blocks: chain hashes of its whole blocks, in order.
    tokens: its length.
    answer_tokens: that its answer will have, at most.
    """

    blocks: Sequence[BlockHash]
    tokens: int
    answer_tokens: int = 0


class Prefilled(NamedTuple):
    """A request whose prompt is in the pool.

    blocks: what it references, to be released at its end.
    local_tokens, pulled_tokens, computed_tokens: of its prompt, found in the pool, pulled from a peer, computed.
    loaded_tokens, stored_tokens: of its prompt, loaded from a tier below the pool, read from a store that all share.
    """

    blocks: Sequence[BlockHash]
    local_tokens: int
    pulled_tokens: int
    computed_tokens: int
    loaded_tokens: int = 0
    stored_tokens: int = 0


class Engine:
    """One simulated engine. All methods are for the event loop's thread.

    computed_tokens: prompt tokens computed since its start. extra_tokens: claimed to be waiting, without being there.
    computed_blocks: how often each block was computed. pulled_blocks, missed_blocks: how many came from peers, and did
        not, in all.
    """

    def __init__(self, profile: Profile, sharing: Sharing | None = None) -> None:
        self.profile = profile
        self.pool = KvPool(profile.kv_blocks)
        self.computed_tokens = 0
        self.computed_blocks: Counter[BlockHash] = Counter()
        self.pulled_blocks = self.missed_blocks = 0
        self.extra_tokens = 0
        self.seat: Seat | None = None
        """The core that it has beside others; None: none slows it down."""
        self.dead = False
        self.hung = False
        self._sharing: Sharing = sharing or Alone()
        self._waiting_tokens = 0
        self._running = 0
        self._one = asyncio.Lock()
        self._freed = asyncio.Event()
        self._requests: set[asyncio.Task[object]] = set()

    def __repr__(self) -> str:
        state = "dead" if self.dead else "hung" if self.hung else "alive"
        return f"Engine({state}, {self._running} running, {self.pool!r})"

    async def prefill(self, request_id: str, text: bytes) -> Prefilled:
        """Compute a text's prompt: see `prefill_tokens`. For blocks of `BLOCK_TOKENS`."""
        return await self.prefill_tokens(request_id, TokenizedPrompt(block_hashes(text), len(text) // TOKEN_BYTES))

    async def prefill_tokens(self, request_id: str, prompt: TokenizedPrompt) -> Prefilled:
        """Compute a prompt, or what of it is nowhere. Its blocks are referenced until `release`.

        Raises Refused when the engine dies meanwhile, or when the prompt is larger than the pool.
        """
        with self.living():
            self._running += 1
            try:
                return await self._prefill(request_id, prompt)
            finally:
                self._running -= 1

    @contextmanager
    def living(self) -> Iterator[None]:
        """Have what the present task does break with the engine: raises Refused when it dies, or is dead already."""
        if self.dead:
            raise Refused("the engine is dead")
        task: asyncio.Task[object] | None = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self.dead and task.uncancel() == 0:
                raise Refused("the engine died") from None
            raise
        finally:
            self._requests.discard(task)

    async def decode(self, tokens: int) -> None:
        """Let the time of so many output tokens pass."""
        self._running += 1
        try:
            await self._compute(tokens * self.profile.decode_s)
        finally:
            self._running -= 1

    def release(self, request: Prefilled) -> None:
        """End a request: its blocks may be evicted from now on."""
        self.pool.release(request.blocks)
        self._freed.set()

    def evict_all(self) -> None:
        """Lose every block that no request is using."""
        self._sharing.evicted(self.pool.clear())

    def die(self) -> None:
        """Break all that is running, and refuse what comes."""
        self.dead = True
        for task in list(self._requests):
            task.cancel()

    def hang(self) -> None:
        """Compute nothing from now on, not even what was begun; all connections stay open."""
        self.hung = True

    def pull_s(self, blocks: int) -> float:
        """Return how long a pull of so many blocks takes."""
        return self.profile.pull_fixed_s + blocks * self.profile.block_bytes / self.profile.pull_bytes_per_s

    def load(self) -> LoadReport:
        """Return what a connector reports of this engine now."""
        return LoadReport(
            running=self._running,
            waiting=0,
            waiting_tokens=self._waiting_tokens + self.extra_tokens,
            kv_blocks_used=self.pool.referenced,
            kv_blocks_total=self.pool.slot_count,
            block_tokens=self.profile.block_tokens,
            block_bytes=self.profile.block_bytes,
            prefill_tokens_per_s=self.profile.prefill_tokens_per_s,
            pull_bytes_per_s=self.profile.pull_bytes_per_s,
            pull_fixed_s=self.profile.pull_fixed_s,
            hit_blocks=self.pulled_blocks,
            # Nobody has them, or not yet: a simulated engine pulls whatever it finds.
            missed_blocks=(self.missed_blocks,),
        )

    async def _prefill(self, request_id: str, prompt: TokenizedPrompt) -> Prefilled:
        blocks, tokens = prompt.blocks, prompt.tokens
        if len(blocks) > self.pool.slot_count:
            raise Refused(f"prompt: expected at most {self.pool.slot_count} blocks, got {len(blocks)}")
        self._waiting_tokens += tokens
        try:
            await asyncio.sleep(self.profile.arrival_s)
            self._sharing.received(sampled_chain(request_id, tokens, blocks, self.profile.block_tokens))
            on_arrival = self._found(blocks)
            async with self._one:
                await self._room_for(blocks)
                local, held = self._found(blocks) if self.profile.shares_prefill else on_arrival
                self._sharing.evicted(self.pool.reserve(blocks))
                try:
                    await self._fill(blocks, tokens, local, held)
                except BaseException:
                    self.pool.release(blocks)
                    self._freed.set()
                    raise
        finally:
            self._waiting_tokens -= tokens
        if blocks:
            new = self.pool.fill(blocks)
            asyncio.get_running_loop().call_later(self.profile.publish_s, self._publish, request_id, new)
        local_tokens, held_tokens = local * self.profile.block_tokens, held * self.profile.block_tokens
        return Prefilled(blocks, local_tokens, held_tokens - local_tokens, tokens - held_tokens)

    def _found(self, blocks: Sequence[BlockHash]) -> tuple[int, int]:
        """Return how many leading blocks are here, and how many are here or can be pulled."""
        local = self.pool.match(blocks)
        return local, max(local, self._sharing.prefix_at_peers(blocks))

    async def _room_for(self, blocks: Sequence[BlockHash]) -> None:
        """Wait until running requests leave room for a prompt."""
        while not self.pool.fits(blocks):
            self._freed.clear()
            await self._freed.wait()

    async def _fill(self, blocks: Sequence[BlockHash], tokens: int, local: int, held: int) -> None:
        """Pull the blocks ``[local, held)`` and compute the rest of a prompt."""
        if held > local:
            await asyncio.sleep(self.pull_s(held - local))
            self.pulled_blocks += held - local
        todo = tokens - held * self.profile.block_tokens
        self.computed_tokens += todo
        self.computed_blocks.update(blocks[held:])
        self.missed_blocks += len(blocks) - held
        await self._compute(todo / self.profile.prefill_tokens_per_s)

    async def _compute(self, seconds: float) -> None:
        """Let time pass; for ever once the engine hangs."""
        await self._pass(seconds)
        if self.hung:
            await asyncio.get_running_loop().create_future()

    async def _pass(self, seconds: float) -> None:
        """Let the time pass that something takes alone, or longer beside others."""
        await (asyncio.sleep(seconds) if self.seat is None else self.seat.work(seconds))

    def _publish(self, request_id: str | None, blocks: Sequence[HeldBlock]) -> None:
        if not self.dead:
            self._sharing.computed(request_id, [held for held in blocks if self.pool.holds(held)])
