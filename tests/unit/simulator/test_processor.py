"""Engines that share cores and memory: what is computed at one time slows each other down."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_simulator.processor import Cores, Processor
from ghostcacher_simulator.replay.replay import Run, replay
from ghostcacher_simulator.virtual_time import run_virtual, virtual
from tests.unit.simulator.replay.support import entrant, fleet, load

HALVED = Cores((0, 1), (1.0, 0.5))
"""Two cores that halve each other."""


async def timed(processor: Processor, seconds: float, core: int = 0, after_s: float = 0.0) -> float:
    """Return how long something took that takes so long alone."""
    await asyncio.sleep(after_s)
    began_at = asyncio.get_running_loop().time()
    await processor.work(seconds, core)
    return asyncio.get_running_loop().time() - began_at


@virtual
async def test_what_is_alone_takes_its_time() -> None:
    processor = Processor(HALVED)
    assert [await timed(processor, seconds) for seconds in (2.0, 0.0, 3.0)] == pytest.approx([2.0, 0.0, 3.0])
    assert repr(processor) == "Processor(0 at work)"


@virtual
async def test_two_share_it_while_both_compute() -> None:
    """From 1 s on the two halve it: the short one has its second after two, the long one the rest alone."""
    processor = Processor(HALVED)
    took_s = await asyncio.gather(timed(processor, 4.0), timed(processor, 1.0, 1, after_s=1.0))
    assert took_s == pytest.approx([5.0, 2.0])


@virtual
async def test_what_is_given_up_leaves_it_to_the_others() -> None:
    processor = Processor(HALVED)
    long = asyncio.ensure_future(timed(processor, 2.0))
    given_up = asyncio.ensure_future(timed(processor, 9.0, 1))
    await asyncio.sleep(1.0)
    given_up.cancel()
    assert await long == pytest.approx(2.5)


@virtual
async def test_speeds_are_those_that_were_measured() -> None:
    """Two busy cores are a tenth slower each, three compute at half speed, and so do more."""
    for many, took_s in ((1, 1.0), (2, 1 / 0.9), (3, 2.0), (4, 2.0)):
        processor = Processor(Cores(range(4), (1.0, 0.9, 0.5)))
        found = await asyncio.gather(*(timed(processor, 1.0, core) for core in range(many)))
        assert found == pytest.approx([took_s] * many)


@virtual
async def test_a_core_is_shared_by_those_on_it_alone() -> None:
    """Two of the three share a core, at 0.4 each; the third one has its own, and both are a tenth slower beside it."""
    processor = Processor(Cores((0, 1, 0), (1.0, 0.9), (1.0, 0.4)))
    took_s = await asyncio.gather(*(timed(processor, seconds, core) for seconds, core in ((9, 0), (9, 1), (9, 0))))
    assert took_s[1] == pytest.approx(10.0)
    # 10 s at 0.36, and the rest at 0.4.
    assert [took_s[0], took_s[2]] == pytest.approx([10.0 + 5.4 / 0.4] * 2)


@virtual
async def test_more_on_a_core_than_were_measured_share_it_in_equal_parts() -> None:
    """Two at 0.4 each are 0.8 of a core; four have 0.2 each."""
    processor = Processor(Cores((0,) * 4, (1.0,), (1.0, 0.4)))
    assert await asyncio.gather(*(timed(processor, 1.0) for _ in range(4))) == pytest.approx([5.0] * 4)


def run(*prompts: str, cores: Cores | None = None, arrival_s: float = 0.0) -> Run:
    """Send prompts of 810 tokens at the same time to two workers in turns; their answers have 21 tokens."""
    spec = fleet(2)
    worker = spec.worker._replace(profile=spec.worker.profile._replace(arrival_s=arrival_s))
    requests = load(*((0.0, name) for name in prompts), answer_tokens=21)
    return run_virtual(replay(entrant("round-robin"), requests, spec._replace(worker=worker, cores=cores)))


def test_workers_of_one_machine_slow_each_other_down() -> None:
    for slower, cores in (
        (1.0, None),
        (1.0, Cores((0, 1), (1.0, 1.0))),
        (2.0, HALVED),
        (2.0, Cores((0, 0), (1.0, 1.0), (1.0, 0.5))),
    ):
        found = run("a", "b", cores=cores)
        assert [each.ttft_s for each in found.served] == pytest.approx([slower * 0.816] * 2)
        assert [each.itl_s for each in found.served] == pytest.approx([slower * 0.00625] * 2)
    (alone,) = run("a", cores=HALVED).served
    assert alone.ttft_s == pytest.approx(0.816)


def test_what_comes_before_the_scheduler_is_slowed_down_too() -> None:
    """Taking in a request is work of the same machine: two at a time take twice 0.2 s."""
    found = run("a", "b", cores=HALVED, arrival_s=0.2)
    assert [each.ttft_s for each in found.served] == pytest.approx([2 * (0.2 + 0.816)] * 2)
