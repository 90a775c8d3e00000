"""What a simulated worker reports of its load, and when that was true: as an engine whose thread looks once a step."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_simulator.processor import Cores, Processor, Seat
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.replay.workers import REPORT_S, SimulatedWorker
from ghostcacher_simulator.virtual_time import virtual
from tests.unit.simulator.replay.support import fleet, load

FIRST, SECOND = load((0.0, "a"), (0.0, "b")).requests
"""Prompts of 810 tokens: with the fixed time of a step one of them takes 0.816 s."""


def worker() -> SimulatedWorker:
    return SimulatedWorker("w0", fleet(1).worker, Stores(pulls=True))


def reported(of: SimulatedWorker) -> LoadReport:
    of.report()
    assert of.worker.load is not None
    return of.worker.load.load


@virtual
async def test_load_is_measured_when_a_step_begins() -> None:
    """What comes during a step is not counted before it ends, and the report says how old it is."""
    one, now = worker(), asyncio.get_running_loop().time
    assert reported(one).running == 0
    await asyncio.sleep(REPORT_S)
    first = asyncio.ensure_future(one.serve(FIRST, lambda _: None))
    began_at = now()
    await asyncio.sleep(0.3)
    second = asyncio.ensure_future(one.serve(SECOND, lambda _: None))
    await asyncio.sleep(0.3)
    found = reported(one)
    assert (found.running, found.waiting, found.waiting_tokens) == (1, 0, 810)
    assert found.age_s == pytest.approx(0.6)
    assert one.worker.load_measured_at == pytest.approx(began_at)
    await asyncio.sleep(0.3)
    found = reported(one)
    # The first one's answer goes on beside the second one's prompt.
    assert (found.running, found.waiting_tokens, found.age_s) == (2, 810, pytest.approx(0.9 - 0.816))
    await first
    await second
    found = reported(one)
    assert (found.running, found.waiting_tokens, found.age_s) == (0, 0, 0.0)


@virtual
async def test_load_that_was_not_asked_for_is_of_an_earlier_step() -> None:
    """An engine is asked shortly before a report is due, and not at each step."""
    one, now = worker(), asyncio.get_running_loop().time
    reported(one)
    at = now()
    serving = asyncio.ensure_future(one.serve(FIRST, lambda _: None))
    await asyncio.sleep(0.1)
    assert (reported(one).running, one.worker.load_measured_at) == (0, at)
    await serving


@virtual
async def test_prefill_rate_is_what_steps_have_shown() -> None:
    """Until a step tells, it is that of the machine alone, and stale; on a core that two share it is half of that."""
    one = worker()
    one.seat = Seat(Processor(Cores((0,), (0.5,))), 0)
    assert (reported(one).prefill_tokens_per_s, reported(one).prefill_rate_stale) == (1_000.0, True)
    await one.serve(FIRST, lambda _: None)
    found = reported(one)
    assert (found.prefill_tokens_per_s, found.prefill_rate_stale) == (pytest.approx(0.5 * 810 / 0.816), False)


@virtual
async def test_times_of_answers_are_what_steps_have_shown() -> None:
    one = worker()
    (request,) = load((0.0, "a"), answer_tokens=200).requests
    assert reported(one).decode_step_s == 0.0
    await one.serve(request, lambda _: None)
    assert reported(one).decode_step_s == pytest.approx(0.00625)
