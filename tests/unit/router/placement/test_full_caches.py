"""What counts beside the next request: documents that just fit stay where they are, and no engine is left out."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from ghostcacher_connector.core.coordination.tier_load import TierLoad
from ghostcacher_connector.core.types import Tier
from ghostcacher_router.placement.picker import Options
from ghostcacher_simulator.text import BLOCK_TOKENS, text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import Served, Sim, all_of, make_sim, prompt_of

ENGINES, DOCUMENTS, REQUESTS = 3, 12, 400
DOCUMENT_TOKENS, QUESTION_TOKENS = 8_000, 80
KV_BLOCKS = ((DOCUMENTS // ENGINES + 1) * DOCUMENT_TOKENS + 20 * QUESTION_TOKENS) // BLOCK_TOKENS
"""Of each engine: its share of the documents, one more, and some room for questions."""


async def ask_at_random(sim: Sim, rate_per_s: float, seed: int, requests: int = REQUESTS) -> list[Served]:
    """Ask questions on documents at random, open loop; return how each was served."""
    rng, tasks = Random(seed), []
    for number in range(requests):
        document = text_of(f"document {rng.randrange(DOCUMENTS)}", DOCUMENT_TOKENS)
        router = sim.routers[number % len(sim.routers)]
        tasks.append(router.send(document + text_of(f"question {number}", QUESTION_TOKENS)))
        await asyncio.sleep(rng.expovariate(rate_per_s))
    return await all_of(tasks)


@virtual
async def test_documents_that_just_fit_are_computed_about_once() -> None:
    """Nearly all of what is computed is each document once, and the questions; and no queue grows for it."""
    sim = await make_sim(ENGINES, kv_blocks=KV_BLOCKS, options=Options(ghost_lock=False))
    served = await ask_at_random(sim, rate_per_s=8.0, seed=1)
    computed = sum(engine.computed_tokens for engine in sim.engines.values())
    once = DOCUMENTS * DOCUMENT_TOKENS + REQUESTS * (QUESTION_TOKENS + BLOCK_TOKENS)
    assert computed < 2.0 * once
    assert sum(one.ttft_s for one in served[REQUESTS // 2 :]) / (REQUESTS // 2) < 0.05


@virtual
async def test_documents_that_fit_with_the_host_tiers_are_computed_about_once() -> None:
    """What a worker's host tier has room for is room like its engine's: the documents stay where they are, too."""
    sim = await make_sim(ENGINES, kv_blocks=KV_BLOCKS, options=Options(ghost_lock=False))
    host = TierLoad(Tier.HOST, 0, KV_BLOCKS - KV_BLOCKS // 2, (0, 0, 0, 0, 0), 0, 0, 0, 0)
    for engine in sim.engines.values():
        engine.claims.update(kv_blocks_total=KV_BLOCKS // 2, tiers=(host,))
    await ask_at_random(sim, rate_per_s=8.0, seed=1)
    computed = sum(engine.computed_tokens for engine in sim.engines.values())
    once = DOCUMENTS * DOCUMENT_TOKENS + REQUESTS * (QUESTION_TOKENS + BLOCK_TOKENS)
    assert computed < 1.4 * once


@virtual
async def test_every_router_learns_from_all_requests() -> None:
    """What each of four routers has placed itself is too little to tell that documents come back; all find it alike."""
    sim = await make_sim(ENGINES, routers=4, kv_blocks=KV_BLOCKS)
    await ask_at_random(sim, rate_per_s=8.0, seed=1, requests=60)
    shares = [router.routing.state.regret.share for router in sim.routers]
    assert min(shares) > 0.5
    assert max(shares) - min(shares) < 0.1


@virtual
async def test_plain_engines_show_how_much_they_hold() -> None:
    """Of engines that report nothing their answers tell, roughly, what each holds, and that all of it comes back."""
    sim = Sim(ENGINES, plain=True, kv_blocks=KV_BLOCKS // 2)
    await ask_at_random(sim, rate_per_s=2.0, seed=1, requests=120)
    state = sim.routers[0].routing.state
    for name in sim.engines:
        assert 0.5 < state.sent_caches.capacity_tokens(name) / (KV_BLOCKS // 2 * BLOCK_TOKENS) < 1.5
    assert state.regret.share > 0.5


@virtual
async def test_of_two_copies_the_one_that_was_used_last_is_used_again() -> None:
    """Using the other one would keep both. How much that costs follows from how much was evicted since it was used."""
    sim = await make_sim(2, kv_blocks=KV_BLOCKS, options=Options(ghost_lock=False))
    router, rng, text = sim.routers[0], Random(1), text_of("text", DOCUMENT_TOKENS // 2)
    regret = router.routing.state.regret
    documents = [prompt_of(text_of(f"document {number}", DOCUMENT_TOKENS)) for number in range(DOCUMENTS)]

    def evict(prompts: int) -> None:
        for _ in range(prompts):
            document = rng.choice(documents)
            regret.measure(len(document.digests), DOCUMENT_TOKENS)
            regret.note(document.digests, rng.choice(["w0", "w1"]))

    async def use(worker: str) -> None:
        (other,) = sim.engines.keys() - {worker}
        await router._serve(router.ask(text)._replace(exclude=frozenset({other})), text)
        await sim.settle(1)

    async def costs_ms() -> dict[str, float]:
        rows = await router.picker.explain(router.ask(text))
        return {str(row["worker"]): float(str(row["others_ms"])) for row in rows}

    await use("w0")
    regret.measure(1, BLOCK_TOKENS)
    regret.resize(2 * KV_BLOCKS * BLOCK_TOKENS)
    evict(100)
    await use("w1")
    at_once = await costs_ms()
    assert at_once["w0"] > at_once["w1"]
    evict(1)
    await use("w0")
    assert (await costs_ms())["w0"] < (await costs_ms())["w1"] < at_once["w0"]


@virtual
async def test_copies_of_a_large_text_are_priced_while_nobody_says_what_caches_hold() -> None:
    """As when all workers were replaced, and have not reported yet: it costs others nothing, as far as is known."""
    sim = await make_sim(2, kv_blocks=KV_BLOCKS, options=Options(ghost_lock=False))
    router, text = sim.routers[0], text_of("text", DOCUMENT_TOKENS)
    for other in ("w1", "w0"):
        await router._serve(router.ask(text)._replace(exclude=frozenset({other})), text)
        await sim.settle(1)
        router.routing.state.regret.sunk += 1
    router.routing.state.regret.resize(0)
    assert [row["others_ms"] for row in await router.picker.explain(router.ask(text))] == [0.0, 0.0]


@pytest.mark.parametrize("at_once", [10, 40])
@virtual
async def test_no_plain_engine_idles_beside_a_common_system_prompt(at_once: int) -> None:
    """Engines that report nothing all get a share of requests with a common beginning, though one has it at first."""
    sim, system, engines, requests = Sim(5, plain=True), text_of("system", 8_000), 5, 200
    running = asyncio.Semaphore(at_once)

    async def ask(number: int) -> Served:
        async with running:
            return await sim.routers[0].send(system + text_of(f"question {number}", 300))

    await ask(requests)
    served = await all_of([asyncio.ensure_future(ask(number)) for number in range(requests)])
    counts = Counter(one.worker for one in served)
    assert len(counts) == engines
    assert min(counts.values()) >= requests / engines / 2
