"""Engines that share a processor: what is computed at one time slows each other down."""

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
    processor = Processor((1.0, 0.5))
    assert [await timed(processor, seconds) for seconds in (2.0, 0.0, 3.0)] == pytest.approx([2.0, 0.0, 3.0])
    assert repr(processor) == "Processor(0 at work)"


@virtual
async def test_two_share_it_while_both_compute() -> None:
    """From 1 s on the two halve it: the short one has its second after two, the long one the rest alone."""
    processor = Processor((1.0, 0.5))
    took_s = await asyncio.gather(timed(processor, 4.0), timed(processor, 1.0, after_s=1.0))
    assert took_s == pytest.approx([5.0, 2.0])


@virtual
async def test_what_is_given_up_leaves_it_to_the_others() -> None:
    processor = Processor((1.0, 0.5))
    long = asyncio.ensure_future(timed(processor, 2.0))
    given_up = asyncio.ensure_future(timed(processor, 9.0))
    await asyncio.sleep(1.0)
    given_up.cancel()
    assert await long == pytest.approx(2.5)


@virtual
async def test_speeds_are_those_that_were_measured() -> None:
    """Two are a tenth slower each, three compute at half speed, and so do more."""
    for many, took_s in ((1, 1.0), (2, 1 / 0.9), (3, 2.0), (4, 2.0)):
        processor = Processor((1.0, 0.9, 0.5))
        assert await asyncio.gather(*(timed(processor, 1.0) for _ in range(many))) == pytest.approx([took_s] * many)


def test_workers_of_one_machine_slow_each_other_down() -> None:
    """Prompts of 810 tokens and their answers of 21, at the same time: both compute in every step."""

    def run(*prompts: str, speeds: tuple[float, ...] | None = None) -> Run:
        requests = load(*((0.0, name) for name in prompts), answer_tokens=21)
        return run_virtual(replay(entrant("round-robin"), requests, fleet(2)._replace(speeds=speeds)))

    for slower, speeds in ((1.0, None), (1.0, (1.0, 1.0)), (2.0, (1.0, 0.5))):
        found = run("a", "b", speeds=speeds)
        assert [each.ttft_s for each in found.served] == pytest.approx([slower * 0.816] * 2)
        assert [each.itl_s for each in found.served] == pytest.approx([slower * 0.00625] * 2)
    (alone,) = run("a", speeds=(1.0, 0.5)).served
    assert alone.ttft_s == pytest.approx(0.816)


def test_what_comes_before_the_scheduler_is_slowed_down_too() -> None:
    """Taking in a request is work of the same machine: two at a time take twice 0.2 s."""
    spec = fleet(2)
    slow = spec.worker._replace(profile=spec.worker.profile._replace(arrival_s=0.2))
    requests = load((0.0, "a"), (0.0, "b"))
    found = run_virtual(replay(entrant("round-robin"), requests, spec._replace(worker=slow, speeds=(1.0, 0.5))))
    assert [each.ttft_s for each in found.served] == pytest.approx([2 * (0.2 + 0.816)] * 2)
