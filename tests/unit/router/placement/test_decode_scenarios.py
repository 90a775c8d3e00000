"""How requests spread whose answers take long: real routers over simulated engines, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from statistics import mean

import pytest

from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import RATE, Sim


async def clients(sim: Sim, count: int, requests: int, tokens: int) -> tuple[Counter[str], list[tuple[int, ...]]]:
    """Let clients send requests that share nothing, each its next one when it has its answer.

    Returns the requests of each worker, and how many ran at each of them, ten times a second while all clients did.
    """
    placed: Counter[str] = Counter()
    running: list[tuple[int, ...]] = []

    async def client(number: int) -> None:
        await asyncio.sleep(0.04 * number)
        for turn in range(requests):
            placed[(await sim.routers[0].send(text_of(f"client {number}, turn {turn}", tokens))).worker] += 1

    tasks = [asyncio.ensure_future(client(number)) for number in range(count)]
    await asyncio.sleep(0.04 * count)
    while not any(task.done() for task in tasks):
        running.append(tuple(engine.load().running for engine in sim.engines.values()))
        await asyncio.sleep(0.1)
    await asyncio.gather(*tasks)
    return placed, running


@virtual
async def test_calibrated_rates_that_differ_do_not_decide() -> None:
    """Two equal engines whose calibrations differ by 1.8 get about the same: their prompts never told the true rate."""
    sim = Sim(2, answer_tokens=64)
    for engine, rate in zip(sim.engines.values(), (32_900.0, 58_300.0), strict=True):
        engine.claims = {"prefill_tokens_per_s": rate, "prefill_rate_stale": True}
    await sim.settle()
    placed, _ = await clients(sim, 8, 6, 64)
    assert max(placed.values()) <= 28


@pytest.mark.parametrize("stale", [True, False])
@pytest.mark.parametrize(("skew", "count"), [(0.0, 32), (0.05, 32), (0.05, 64), (0.1, 64)])
@virtual
async def test_noise_in_rates_does_not_crowd_an_engine(skew: float, count: int, stale: bool) -> None:
    """Prompts of a fifth of a second and answers of two: about as many run at an engine that seems a little slower."""
    sim = Sim(2, rates=[10 * RATE, 10 * RATE], answer_tokens=100)
    for engine, rate in zip(sim.engines.values(), (RATE, RATE * (1 - skew)), strict=True):
        engine.claims = {"prefill_tokens_per_s": rate, "prefill_rate_stale": stale}
    await sim.settle()
    _, running = await clients(sim, count, 6, 2000)
    first, second = (mean(each) for each in zip(*running, strict=True))
    assert abs(first - second) <= count / 10


@virtual
async def test_engine_that_is_faster_beyond_noise_gets_more_of_the_prompts() -> None:
    """What measures three times the rate of its equal, lately, is believed."""
    sim = Sim(2, rates=[RATE, 3 * RATE])
    await sim.settle()
    placed, _ = await clients(sim, 16, 6, 4000)
    assert placed["w1"] >= 2 * placed["w0"]


@virtual
async def test_engine_that_decodes_for_many_gets_the_next_later() -> None:
    """Nothing waits anywhere: the next request goes where fewer answers are being decoded, by one even."""
    sim = Sim(2, answer_tokens=500)
    engines = list(sim.engines.values())
    for engine in engines:
        engine.claims = {"decode_step_s": 0.03, "decode_request_s": 0.002}
    await sim.settle()
    tasks = [sim.routers[0].send(text_of(f"text {number}", 50)) for number in range(9)]
    await asyncio.sleep(1.0)
    for number in range(9, 20):
        busy = [engine.load().running for engine in engines]
        tasks.append(sim.routers[0].send(text_of(f"text {number}", 50)))
        await asyncio.sleep(0.5)
        now = [engine.load().running for engine in engines]
        assert max(now) <= max(*busy, min(busy) + 1)
    for task in tasks:
        task.cancel()
