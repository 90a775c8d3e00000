"""The steps of an engine: each computes a chunk of some prompts, and one token of every answer.

A step takes a fixed time, and longer by what it computes: its prompts' tokens at the engine's rate, and a little for
each answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple


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
        begins: Callable[[], None] = lambda: None,
        took: Callable[[int, int, float], None] = lambda *_: None,
    ) -> None:
        """compute: lets time pass. admit: adds waiting prompts to the step that is planned, while `room` is left.

        begins: told that a step with prompts begins, when it is planned. took: told the prompt tokens of a step, its
        answers, and how long it took.
        """
        self._batching = batching
        self._rate = prefill_tokens_per_s
        self._compute = compute
        self._admit = admit
        self._begins, self._took = begins, took
        self._prompts: list[Job] = []
        self._answers: list[Job] = []
        self._chunks: list[tuple[Job, int]] = []
        self.room = 0
        """Prompt tokens that the step that is planned can still take."""
        self.one_by_one = False
        """Whether to take each step by itself, also where many would be alike: others may make any of them longer."""
        self.computes_prompts = False
        """Whether the step that runs computes any prompt; others are over in a moment."""
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
        chunks, answers, now = self._chunks, list(self._answers), asyncio.get_running_loop().time
        prompt_tokens, began_at = sum(tokens for _, tokens in chunks), now()
        if chunks:
            self._begins()
        self.computes_prompts = bool(chunks)
        await self._compute(self._step_s() + prompt_tokens / self._rate)
        self.computes_prompts = False
        self._took(prompt_tokens, len(answers), now() - began_at)
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
        for _ in range(steps):
            self._took(0, len(answers), step_s)
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
