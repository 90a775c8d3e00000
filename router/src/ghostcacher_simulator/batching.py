"""An engine that batches continuously: prompts are admitted between two steps, which are in steps.py.

    arrival -> admission between two steps, in order, as step and KV pool have room -> pull -> chunks in steps -> answer

A request that comes while a step runs is looked at when it ends, as schedulers do. What a step is to compute of a
prompt is found by whoever is admitted after it, also into the same step; peers find it when the step has ended. The
slots of an answer are taken with its prompt: nothing is ever preempted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.types import BlockHash, PrefixHit
from ghostcacher_simulator.engine import Engine, Prefilled, Profile, Refused, Sharing, TokenizedPrompt
from ghostcacher_simulator.steps import Batching, Job, Steps
from ghostcacher_simulator.text import sampled_chain


class Found(NamedTuple):
    """What of a prompt need not be computed, in leading blocks."""

    local: int
    """In the engine's cache."""
    held: int
    """There, or where they can be brought from."""
    reads: Sequence[BlockHash] = ()
    """Of a tier below: kept there until they are read."""
    hit: PrefixHit | None = None
    """At a peer."""


class Fetched(NamedTuple):
    """Blocks that were brought here."""

    loaded: int = 0
    """From a tier below."""
    pulled: int = 0
    """From a peer."""
    stored: int = 0
    """From a store that all share."""


class _Waiting:
    """A prompt that waits for its admission."""

    def __init__(self, request_id: str, prompt: TokenizedPrompt, slots: Sequence[BlockHash]) -> None:
        self.request_id, self.prompt, self.slots = request_id, prompt, slots
        self.admitted: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self.holds_slots = False
        self.job: Job | None = None
        """In the step into which it was admitted; None before that, and where it waits for a pull."""


class BatchingEngine(Engine):
    """An engine that batches continuously; `Profile.decode_s` and `shares_prefill` say nothing of it."""

    def __init__(self, profile: Profile, batching: Batching, sharing: Sharing | None = None) -> None:
        super().__init__(profile, sharing)
        self.batching = batching
        self.steps = Steps(
            batching, profile.prefill_tokens_per_s, self._compute, self._admit, self._step_begins, self._step_took
        )
        self._queue: deque[_Waiting] = deque()
        self._unseen: list[_Waiting] = []
        """Of the queue, those that the scheduler has not seen yet: it looks between two steps."""
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

    def release(self, request: Prefilled) -> None:
        super().release(request)
        self._gave_up_slots()

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
        waiting = _Waiting(request_id, prompt, slots)
        try:
            found = await self._admission(waiting)
            fetched, held = Fetched(), found.local
            if found.held > found.local:
                fetched = await self._fetch(self._sought(prompt), found)
                held += sum(fetched)
                self._filled(None, prompt.blocks[:held])
            job = waiting.job or self._job(request_id, prompt, held)
            computed = job.left
            await self.steps.prompt(job)
        except BaseException:
            if waiting.holds_slots:
                if waiting.job is not None:
                    self.steps.leave(waiting.job)
                self.pool.release(slots)
                self._gave_up_slots()
            raise
        loaded, pulled, stored = (blocks * self.profile.block_tokens for blocks in fetched)
        return Prefilled(slots, found.local * self.profile.block_tokens, pulled, computed, loaded, stored)

    async def _admission(self, waiting: _Waiting) -> Found:
        """Wait for room in the pool and in a step; return what of the prompt is found."""
        request_id, prompt = waiting.request_id, waiting.prompt
        self._waiting[request_id] = prompt
        try:
            await self._pass(self.profile.arrival_s)
            self._queue.append(waiting)
            self._unseen.append(waiting)
            self.steps.wake()
            return await waiting.admitted
        finally:
            self._waiting.pop(request_id, None)
            if not waiting.holds_slots and waiting in self._queue:
                self._queue.remove(waiting)

    def _admit(self) -> None:
        """Admit prompts in order, as the step that is planned and the pool have room."""
        self._see()
        while self._queue and self.steps.room > 0 and self.pool.fits(self._queue[0].slots):
            waiting = self._queue.popleft()
            found = self._look_up(self._sought(waiting.prompt))
            self._sharing.evicted(self.pool.reserve(waiting.slots))
            waiting.holds_slots = True
            self._waiting.pop(waiting.request_id, None)
            waiting.admitted.set_result(found)
            if found.held == found.local:
                waiting.job = self._job(waiting.request_id, waiting.prompt, found.local)
                self.steps.add(waiting.job)

    def _see(self) -> None:
        """Report the prompts that have come since the last step."""
        unseen, self._unseen = self._unseen, []
        for waiting in unseen:
            if (prompt := waiting.prompt).blocks:
                block_tokens = self.profile.block_tokens
                self._sharing.received(sampled_chain(waiting.request_id, prompt.tokens, prompt.blocks, block_tokens))

    def _step_begins(self) -> None:
        """A step with prompts is planned, and begins."""

    def _step_took(self, prompt_tokens: int, answers: int, seconds: float) -> None:
        """A step is over."""

    def _gave_up_slots(self) -> None:
        if self._queue:
            self.steps.wake()

    def _sought(self, prompt: TokenizedPrompt) -> Sequence[BlockHash]:
        """Return the blocks that need not be computed if they are anywhere: not the one with the prompt's last token.

        Without computing that there is no answer, and engines compute whole blocks.
        """
        return prompt.blocks[: (prompt.tokens - 1) // self.profile.block_tokens]

    def _look_up(self, blocks: Sequence[BlockHash]) -> Found:
        """Return what of a prompt need not be computed."""
        return Found(*self._found(blocks))

    async def _fetch(self, blocks: Sequence[BlockHash], found: Found) -> Fetched:
        """Have what is held elsewhere brought here; return what came."""
        async with self._pulls:
            await asyncio.sleep(self.pull_s(found.held - found.local))
        # What the peers have evicted meanwhile is lost.
        pulled = max(0, min(found.held, self._found(blocks)[1]) - found.local)
        self.pulled_blocks += pulled
        return Fetched(pulled=pulled)

    def _job(self, request_id: str, prompt: TokenizedPrompt, held: int) -> Job:
        """Return what is left to compute of a prompt, of which so many blocks are held."""
        block_tokens = self.profile.block_tokens
        planned_tokens = done = held * block_tokens
        todo = prompt.tokens - done
        self.computed_tokens += todo
        self.computed_blocks.update(prompt.blocks[held:])
        self.missed_blocks += len(prompt.blocks) - held

        def planned(tokens: int) -> None:
            nonlocal planned_tokens
            planned_tokens += tokens
            self.pool.fill(prompt.blocks[: planned_tokens // block_tokens])

        def advanced(tokens: int) -> None:
            nonlocal done
            done += tokens
            ended = done == prompt.tokens
            self._filled(request_id if ended else None, prompt.blocks[: done // block_tokens])

        return Job(todo, planned, advanced)

    def _filled(self, request_id: str | None, blocks: Sequence[BlockHash]) -> None:
        """Leading blocks of a prompt are there; request_id: all of them that it will have."""
        if blocks:
            filled = self.pool.fill(blocks)
            asyncio.get_running_loop().call_later(self.profile.publish_s, self._publish, request_id, filled)
