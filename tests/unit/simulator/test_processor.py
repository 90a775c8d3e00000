"""Engines that share a processor: what is computed at one time shares it equally."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_simulator.processor import Processor
from ghostcacher_simulator.replay.replay import Run, replay
from ghostcacher_simulator.virtual_time import run_virtual, virtual
from tests.unit.simulator.replay.support import entrant, fleet, load


async def timed(processor: Processor, seconds: float, after_s: float = 0.0) -> float:
    """Return how long something took that takes so long alone."""
    await asyncio.sleep(after_s)
    began_at = asyncio.get_running_loop().time()
    await processor.work(seconds)
    return asyncio.get_running_loop().time() - began_at


@virtual
async def test_what_is_alone_takes_its_time() -> None:
    processor = Processor()
    assert [await timed(processor, seconds) for seconds in (2.0, 0.0, 3.0)] == pytest.approx([2.0, 0.0, 3.0])
    assert repr(processor) == "Processor(0 at work)"


@virtual
async def test_two_share_it_while_both_compute() -> None:
    """From 1 s on the two halve it: the short one has its second after two, the long one the rest alone."""
    processor = Processor()
    took_s = await asyncio.gather(timed(processor, 4.0), timed(processor, 1.0, after_s=1.0))
    assert took_s == pytest.approx([5.0, 2.0])


@virtual
async def test_what_is_given_up_leaves_it_to_the_others() -> None:
    processor = Processor()
    long = asyncio.ensure_future(timed(processor, 2.0))
    given_up = asyncio.ensure_future(timed(processor, 9.0))
    await asyncio.sleep(1.0)
    given_up.cancel()
    assert await long == pytest.approx(2.5)


def test_workers_that_share_one_compute_at_half_speed() -> None:
    """Prompts of 810 tokens and their answers, at the same time; w2 has the processor of w0, and w1 one of its own."""

    def run(*prompts: str, processors: int | None = None) -> Run:
        spec = fleet(3)._replace(processors=processors)
        return run_virtual(
            replay(entrant("round-robin"), load(*((0.0, name) for name in prompts), answer_tokens=21), spec)
        )

    alone, shared = run("a", "b", "c"), run("a", "b", "c", processors=2)
    assert [each.ttft_s for each in alone.served] == pytest.approx([0.816] * 3)
    ttft_s = {each.worker: each.ttft_s for each in shared.served}
    assert ttft_s == pytest.approx({"w0": 2 * 0.816, "w1": 0.816, "w2": 2 * 0.816})
    itl_s = {each.worker: each.itl_s for each in shared.served}
    assert itl_s == pytest.approx({"w0": 2 * 0.00625, "w1": 0.00625, "w2": 2 * 0.00625})
