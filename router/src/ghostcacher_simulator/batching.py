"""An engine that batches continuously: each step computes a chunk of some prompts, and one token of every answer.

    prefill: arrival -> admission between two steps, in order, as step and KV pool have room -> pull -> chunks in steps
    decode:  one token a step; each running answer makes the step a little longer

A request that comes while a step runs is looked at when it ends, as schedulers do. What a step is to compute of a
prompt is found by whoever is admitted after it, also into the same step; peers find it when the step has ended. The
slots of an answer are taken with its prompt: nothing is ever preempted.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.types import BlockHash, PrefixHit
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


class Job:
    """What is left to compute of one prompt or one answer, in tokens."""

    def __init__(
        self,
        tokens: int,
        planned: Callable[[int], None] = lambda _: None,
        advanced: Callable[[int], None] = lambda _: None,
    ) -> None:
        """planned, advanced: called with the tokens that a step is to compute, and that it has computed."""
        self.left = tokens
        self.ended = asyncio.get_running_loop().create_future()
        self.planned = planned
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

    def __init__(
        self,
        batching: Batching,
        prefill_tokens_per_s: float,
        compute: Callable[[float], Awaitable[None]],
        admit: Callable[[], None],
    ) -> None:
        """compute: lets time pass. admit: adds waiting prompts to the step that is planned, while `room` is left."""
        self._batching = batching
        self._rate = prefill_tokens_per_s
        self._compute = compute
        self._admit = admit
        self._prompts: list[Job] = []
        self._answers: list[Job] = []
        self._chunks: list[tuple[Job, int]] = []
        self.room = 0
        """Prompt tokens that the step that is planned can still take."""
        self.one_by_one = False
        """Whether to take each step by itself, also where many would be alike: others may make any of them longer."""
        self._woken: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Return how many prompt tokens are still to be computed."""
        return sum(job.left for job in self._prompts)

    @property
    def requests(self) -> int:
        """Return how many prompts and answers are being computed."""
        return len(self._prompts) + len(self._answers)

    def wake(self) -> None:
        """Have the next step planned: at once, or when the one that runs has ended."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._take_steps())

    def add(self, job: Job) -> None:
        """Let a prompt join the step that is planned. To be followed by `prompt`."""
        self._prompts.append(job)
        self._plan(job)

    async def prompt(self, job: Job) -> None:
        """Compute a prompt, which was added to a step or not."""
        if job not in self._prompts:
            self._prompts.append(job)
            self.wake()
        await self._until_ended(job, self._prompts)

    async def answer(self, tokens: int) -> None:
        """Compute so many tokens of an answer."""
        if tokens:
            job = Job(tokens)
            self._answers.append(job)
            self.wake()
            await self._until_ended(job, self._answers)

    def leave(self, job: Job) -> None:
        """Take out a prompt that was added and is not awaited."""
        if job in self._prompts:
            self._prompts.remove(job)

    async def _until_ended(self, job: Job, jobs: list[Job]) -> None:
        try:
            await job.ended
        finally:
            jobs.remove(job)

    async def _take_steps(self) -> None:
        while self._plan_step():
            await (self._one_step() if self._chunks or self.one_by_one else self._answer_steps())
            # Those that have ended leave, and what follows in the same request joins.
            await asyncio.sleep(0)

    def _plan_step(self) -> bool:
        """Choose what the next step computes; say whether there is anything."""
        self.room, self._chunks = self._batching.step_tokens - len(self._answers), []
        for job in self._prompts:
            self._plan(job)
        self._admit()
        self.room = 0
        return bool(self._prompts or self._answers)

    def _plan(self, job: Job) -> None:
        tokens = min(self.room, job.left)
        if tokens > 0:
            self.room -= tokens
            self._chunks.append((job, tokens))
            job.planned(tokens)

    async def _one_step(self) -> None:
        chunks, answers = self._chunks, list(self._answers)
        await self._compute(self._step_s() + sum(tokens for _, tokens in chunks) / self._rate)
        for job, tokens in [*chunks, *((job, 1) for job in answers)]:
            job.advance(tokens)

    async def _answer_steps(self) -> None:
        """Take as many steps as pass until an answer ends or a request comes: all alike, so at once."""
        now, step_s, answers = asyncio.get_running_loop().time, self._step_s(), list(self._answers)
        began_at, steps_max = now(), min(job.left for job in answers)
        await self._pause(steps_max * step_s)
        # A step that was begun is finished.
        steps = min(steps_max, max(1, math.ceil((now() - began_at) / step_s - 1e-6)))
        await self._compute(max(0.0, began_at + steps * step_s - now()))
        for job in answers:
            job.advance(steps)

    async def _pause(self, seconds: float) -> None:
        """Let time pass until something comes, and no more than so much."""
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        timer = loop.call_later(seconds, _end, self._woken)
        try:
            await self._woken
        finally:
            timer.cancel()

    def _step_s(self) -> float:
        return self._batching.step_s + self._batching.decode_s * len(self._answers)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


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
        self.steps = Steps(batching, profile.prefill_tokens_per_s, self._compute, self._admit)
        self._queue: deque[_Waiting] = deque()
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
            if prompt.blocks:
                chain = sampled_chain(request_id, prompt.tokens, prompt.blocks, self.profile.block_tokens)
                self._sharing.received(chain)
            self._queue.append(waiting)
            self.steps.wake()
            return await waiting.admitted
        finally:
            del self._waiting[request_id]
            if not waiting.holds_slots and waiting in self._queue:
                self._queue.remove(waiting)

    def _admit(self) -> None:
        """Admit prompts in order, as the step that is planned and the pool have room."""
        while self._queue and self.steps.room > 0 and self.pool.fits(self._queue[0].slots):
            waiting = self._queue.popleft()
            found = self._look_up(self._sought(waiting.prompt))
            self._sharing.evicted(self.pool.reserve(waiting.slots))
            waiting.holds_slots = True
            waiting.admitted.set_result(found)
            if found.held == found.local:
                waiting.job = self._job(waiting.request_id, waiting.prompt, found.local)
                self.steps.add(waiting.job)

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
