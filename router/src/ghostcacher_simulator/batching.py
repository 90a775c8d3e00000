"""An engine that batches continuously: each step computes a chunk of some prompts, and one token of every answer.

    prefill: arrival -> admission, in order, as the KV pool has room -> pull -> chunks of the prompt in steps
    decode:  one token a step; each running answer makes the step a little longer

What a step has computed of a prompt is found by whoever comes later. The slots of an answer are taken with its prompt:
nothing is ever preempted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_simulator.engine import Engine, Prefilled, Profile, Refused, Sharing, TokenizedPrompt
from ghostcacher_simulator.text import sampled_chain


class Batching(NamedTuple):
    """How an engine batches.

    step_tokens: computed in one step, at most; an answer counts as one.
    step_s: time of a step, whatever is in it.
    decode_s: what each running answer adds to a step.
    pulls_max: at a time; others wait.
    matches_max: waiting prompts whose hits a load report subtracts; those behind them count in full.
    """

    step_tokens: int = 8_192
    step_s: float = 0.006
    decode_s: float = 0.00025
    pulls_max: int = 2
    matches_max: int = 64


class _Job:
    """What is left to compute of one prompt or one answer, in tokens.

    advanced: called with the tokens that a step has computed.
    """

    def __init__(self, tokens: int, advanced: Callable[[int], None] = lambda _: None) -> None:
        self.left = tokens
        self.ended = asyncio.get_running_loop().create_future()
        self._advanced = advanced

    def advance(self, tokens: int) -> None:
        """Note what a step has computed, unless the request was given up meanwhile."""
        if self.ended.done():
            return
        self.left -= tokens
        self._advanced(tokens)
        if not self.left:
            self.ended.set_result(None)


class Steps:
    """The steps of one engine. They run while there is anything to compute."""

    def __init__(self, batching: Batching, prefill_tokens_per_s: float, compute: Callable[[float], Awaitable[None]]):
        """compute: lets time pass."""
        self._batching = batching
        self._rate = prefill_tokens_per_s
        self._compute = compute
        self._prompts: list[_Job] = []
        self._answers: list[_Job] = []
        self._joined = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Return how many prompt tokens are still to be computed."""
        return sum(job.left for job in self._prompts)

    @property
    def requests(self) -> int:
        """Return how many prompts and answers are being computed."""
        return len(self._prompts) + len(self._answers)

    async def prompt(self, tokens: int, advanced: Callable[[int], None]) -> None:
        """Compute so many tokens of a prompt. advanced: called after each step with the tokens that it computed."""
        await self._run(_Job(tokens, advanced), self._prompts)

    async def answer(self, tokens: int) -> None:
        """Compute so many tokens of an answer."""
        await self._run(_Job(tokens), self._answers)

    async def _run(self, job: _Job, jobs: list[_Job]) -> None:
        if not job.left:
            return
        jobs.append(job)
        self._joined.set()
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._take_steps())
        try:
            await job.ended
        finally:
            jobs.remove(job)

    async def _take_steps(self) -> None:
        while self._prompts or self._answers:
            await (self._mixed_step() if self._prompts else self._answer_steps())
            # Those that have ended leave, and what follows in the same request joins.
            await asyncio.sleep(0)

    async def _mixed_step(self) -> None:
        budget = self._batching.step_tokens - len(self._answers)
        chunks: list[tuple[_Job, int]] = []
        for job in self._prompts:
            if budget > 0:
                chunks.append((job, min(budget, job.left)))
                budget -= chunks[-1][1]
        answers = list(self._answers)
        await self._compute(self._step_s() + sum(tokens for _, tokens in chunks) / self._rate)
        for job, tokens in [*chunks, *((job, 1) for job in answers)]:
            job.advance(tokens)

    async def _answer_steps(self) -> None:
        """Take as many steps as pass until an answer ends or a request joins: all alike, so at once."""
        now, step_s, answers = asyncio.get_running_loop().time, self._step_s(), list(self._answers)
        began_at, steps_max = now(), min(job.left for job in answers)
        self._joined.clear()
        try:
            async with asyncio.timeout(steps_max * step_s):
                await self._joined.wait()
        except TimeoutError:
            pass
        # A step that was begun is finished.
        steps = min(steps_max, max(1, math.ceil((now() - began_at) / step_s - 1e-6)))
        await self._compute(max(0.0, began_at + steps * step_s - now()))
        for job in answers:
            job.advance(steps)

    def _step_s(self) -> float:
        return self._batching.step_s + self._batching.decode_s * len(self._answers)


class BatchingEngine(Engine):
    """An engine that batches continuously; `Profile.decode_s` and `shares_prefill` say nothing of it."""

    def __init__(self, profile: Profile, batching: Batching, sharing: Sharing | None = None) -> None:
        super().__init__(profile, sharing)
        self.batching = batching
        self.steps = Steps(batching, profile.prefill_tokens_per_s, self._compute)
        self._waiting: dict[str, TokenizedPrompt] = {}
        self._pulls = asyncio.Semaphore(batching.pulls_max)

    @property
    def requests(self) -> int:
        """Return how many requests are here, running or not."""
        return self._running

    def uncomputed_tokens(self, matches_max: int | None = None) -> int:
        """Return how many prompt tokens are to be computed for those that are here, as far as can be known.

        matches_max: waiting prompts whose hits are subtracted; None: of all.
        """
        tokens = self.steps.prompt_tokens
        for number, prompt in enumerate(self._waiting.values()):
            known = matches_max is None or number < matches_max
            tokens += prompt.tokens - self.pool.match(prompt.blocks) * self.profile.block_tokens * known
        return tokens

    def slots_of(self, prompt: TokenizedPrompt) -> int:
        """Return how many slots a prompt and its answer take."""
        return -(-(prompt.tokens + prompt.answer_tokens) // self.profile.block_tokens)

    async def decode(self, tokens: int) -> None:
        """Compute so many tokens of an answer, beside whatever else runs."""
        self._running += 1
        try:
            await self.steps.answer(tokens)
        finally:
            self._running -= 1

    def load(self) -> LoadReport:
        tokens = self.uncomputed_tokens(self.batching.matches_max) + self.extra_tokens
        waiting = len(self._waiting)
        return replace(super().load(), running=self._running - waiting, waiting=waiting, waiting_tokens=tokens)

    async def _prefill(self, request_id: str, prompt: TokenizedPrompt) -> Prefilled:
        # Slots for the end of the prompt and for the answer are nobody else's: under names that no block has.
        own = range(self.slots_of(prompt) - len(prompt.blocks))
        slots = [*prompt.blocks, *(f"{request_id}/{number}".encode() for number in own)]
        if len(slots) > self.pool.slot_count:
            raise Refused(f"request: expected at most {self.pool.slot_count} blocks, got {len(slots)}")
        local, held = await self._admit(request_id, prompt, slots)
        try:
            loaded = pulled = 0
            if held > local:
                loaded, pulled = await self._fetch(self._sought(prompt), local, held)
                self._filled(None, prompt.blocks[: local + loaded + pulled])
            computed = await self._compute_prompt(request_id, prompt, local + loaded + pulled)
        except BaseException:
            self.pool.release(slots)
            self._freed.set()
            raise
        found = (blocks * self.profile.block_tokens for blocks in (local, pulled, loaded))
        local_tokens, pulled_tokens, loaded_tokens = found
        return Prefilled(slots, local_tokens, pulled_tokens, computed, loaded_tokens)

    async def _admit(self, request_id: str, prompt: TokenizedPrompt, slots: Sequence[BlockHash]) -> tuple[int, int]:
        """Wait for room, and take it; return how many leading blocks are here, and are here or can be pulled."""
        self._waiting[request_id] = prompt
        try:
            await asyncio.sleep(self.profile.arrival_s)
            if prompt.blocks:
                chain = sampled_chain(request_id, prompt.tokens, prompt.blocks, self.profile.block_tokens)
                self._sharing.received(chain)
            async with self._one:
                await self._room_for(slots)
                found = self._found(self._sought(prompt))
                self._sharing.evicted(self.pool.reserve(slots))
            return found
        finally:
            del self._waiting[request_id]

    def _sought(self, prompt: TokenizedPrompt) -> Sequence[BlockHash]:
        """Return the blocks that need not be computed if they are anywhere: not the one with the prompt's last token.

        Without computing that there is no answer, and engines compute whole blocks.
        """
        return prompt.blocks[: (prompt.tokens - 1) // self.profile.block_tokens]

    async def _fetch(self, blocks: Sequence[BlockHash], local: int, held: int) -> tuple[int, int]:
        """Have the blocks ``[local, held)`` brought here; return how many came from tiers below, then from peers."""
        async with self._pulls:
            await asyncio.sleep(self.pull_s(held - local))
        # What the peers have evicted meanwhile is lost.
        pulled = max(0, min(held, self._found(blocks)[1]) - local)
        self.pulled_blocks += pulled
        return 0, pulled

    async def _compute_prompt(self, request_id: str, prompt: TokenizedPrompt, held: int) -> int:
        """Compute what is not held; return how many tokens that were."""
        done, block_tokens = held * self.profile.block_tokens, self.profile.block_tokens
        todo = prompt.tokens - done
        self.computed_tokens += todo
        self.computed_blocks.update(prompt.blocks[held:])
        self.missed_blocks += len(prompt.blocks) - held

        def advanced(tokens: int) -> None:
            nonlocal done
            done += tokens
            ended = done == prompt.tokens
            self._filled(request_id if ended else None, prompt.blocks[: done // block_tokens])

        await self.steps.prompt(todo, advanced)
        return todo

    def _filled(self, request_id: str | None, blocks: Sequence[BlockHash]) -> None:
        """Leading blocks of a prompt are there; request_id: all of them that it will have."""
        if blocks:
            filled = self.pool.fill(blocks)
            asyncio.get_running_loop().call_later(self.profile.publish_s, self._publish, request_id, filled)
