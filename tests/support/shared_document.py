"""Requests that share a document, for simulations of a fleet."""

from __future__ import annotations

import asyncio

from ghostcacher_connector.core.types import SectionType
from ghostcacher_simulator.text import text_of
from tests.support.routing_sim import RATE, Served, Sim

DOC_TOKENS = 8000
QUESTION_TOKENS = 128
DOC = text_of("document", DOC_TOKENS)
ENDS = ((SectionType.DOC, len(DOC)),)
COMPUTE_S = (DOC_TOKENS + QUESTION_TOKENS) / RATE
MARGIN_S = 0.03


def question(number: int) -> bytes:
    return DOC + text_of(f"question {number}", QUESTION_TOKENS)


async def burst(sim: Sim, count: int) -> list[asyncio.Task[Served]]:
    """Send prompts that share a document, at once, in turns through all routers."""
    routers = sim.routers
    return [routers[number % len(routers)].send(question(number), ends=ENDS) for number in range(count)]
