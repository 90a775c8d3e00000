"""Engines that batch continuously, in virtual time: steps, chunks, room in the pool, pulls beside them."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_connector.core.coordination.base import PromptChain
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_simulator.batching import BatchingEngine
from ghostcacher_simulator.connector import Connector
from ghostcacher_simulator.engine import Alone, Prefilled, Profile, Refused, TokenizedPrompt
from ghostcacher_simulator.steps import Batching
from ghostcacher_simulator.virtual_time import virtual
from tests.support.index_parts import chain, make_record

BLOCK_TOKENS = 100
PROFILE = Profile(
    kv_blocks=20,
    block_tokens=BLOCK_TOKENS,
    prefill_tokens_per_s=1_000.0,
    arrival_s=0.0,
    publish_s=0.001,
    block_bytes=1_000,
    pull_bytes_per_s=10_000.0,
    pull_fixed_s=0.0,
)
BATCHING = Batching(step_tokens=500, step_s=0.1, decode_s=0.01)


def prompt_of(blocks: int, *, seed: int = 0, answer_tokens: int = 1) -> TokenizedPrompt:
    """Return a prompt of some blocks and ten tokens more. Prompts of one seed begin alike."""
    return TokenizedPrompt(tuple(chain(blocks, seed)), blocks * BLOCK_TOKENS + 10, answer_tokens)


async def timed(engine: BatchingEngine, name: str, prompt: TokenizedPrompt) -> tuple[float, Prefilled]:
    """Compute and release; return the seconds that the prompt took."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    prefilled = await engine.prefill_tokens(name, prompt)
    took_s = loop.time() - began_at
    await engine.decode(prompt.answer_tokens - 1)
    engine.release(prefilled)
    return took_s, prefilled


@virtual
async def test_block_with_the_last_token_is_always_computed() -> None:
    """A prompt of whole blocks that has just been computed: without its last token there is no answer."""
    engine = BatchingEngine(PROFILE, BATCHING)
    prompt = prompt_of(8)._replace(tokens=8 * BLOCK_TOKENS)
    await timed(engine, "a", prompt)
    _, again = await timed(engine, "b", prompt)
    assert (again.local_tokens, again.computed_tokens) == (700, 100)


@virtual
async def test_a_prompt_is_computed_in_steps_and_found_again() -> None:
    """810 tokens are two steps; the same prompt again is the ten that fill no block."""
    engine = BatchingEngine(PROFILE, BATCHING)
    took_s, first = await timed(engine, "a", prompt_of(8))
    assert took_s == pytest.approx(2 * 0.1 + 0.81)
    took_s, second = await timed(engine, "b", prompt_of(8))
    assert took_s == pytest.approx(0.1 + 0.01)
    assert (first.computed_tokens, second.local_tokens, second.computed_tokens) == (810, 800, 10)
    assert engine.computed_tokens == 820


@virtual
async def test_prompts_share_a_step_in_order() -> None:
    """Two of 310 tokens: the first and 190 tokens of the second fill the first step."""
    engine = BatchingEngine(PROFILE, BATCHING)
    both = await asyncio.gather(timed(engine, "a", prompt_of(3)), timed(engine, "b", prompt_of(3, seed=1)))
    assert [took_s for took_s, _ in both] == pytest.approx([0.6, 0.6 + 0.1 + 0.12])


@virtual
async def test_answers_make_steps_longer_and_take_one_token_in_each() -> None:
    """Eleven tokens of an answer are ten steps after the prompt's; a second one makes those they share longer."""
    engine = BatchingEngine(PROFILE, BATCHING)
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    await timed(engine, "a", prompt_of(0, answer_tokens=11))
    assert loop.time() - began_at == pytest.approx(0.11 + 10 * 0.11)
    began_at = loop.time()
    prompts = [prompt_of(0, answer_tokens=tokens) for tokens in (11, 6)]
    await asyncio.gather(*(timed(engine, str(number), prompt) for number, prompt in enumerate(prompts)))
    assert loop.time() - began_at == pytest.approx(0.12 + 5 * 0.12 + 5 * 0.11)


@virtual
async def test_a_prompt_joins_after_the_step_that_runs() -> None:
    """A prompt that comes while answers are computed waits for the step that was begun, and shares the next one."""
    engine = BatchingEngine(PROFILE, BATCHING)
    answer = asyncio.ensure_future(timed(engine, "a", prompt_of(0, answer_tokens=100)))
    await asyncio.sleep(0.11 + 3 * 0.11 + 0.05)
    took_s, _ = await timed(engine, "b", prompt_of(1))
    assert took_s == pytest.approx(0.06 + 0.11 + 0.11)
    answer.cancel()


@virtual
async def test_requests_wait_for_room_for_their_answers() -> None:
    """The second of two prompts with answers that together are larger than the pool waits for the first one's end."""
    engine = BatchingEngine(PROFILE, BATCHING)
    first = asyncio.ensure_future(timed(engine, "a", prompt_of(4, answer_tokens=700)))
    second = asyncio.ensure_future(timed(engine, "b", prompt_of(4, seed=1, answer_tokens=700)))
    await asyncio.sleep(1.0)
    load = engine.load()
    assert (load.running, load.waiting, load.waiting_tokens, load.kv_blocks_used) == (1, 1, 410, 12)
    await first
    assert (await second)[0] > 600 * 0.11
    assert engine.pool.referenced == 0


@virtual
async def test_what_is_larger_than_the_pool_is_refused() -> None:
    engine = BatchingEngine(PROFILE, BATCHING)
    with pytest.raises(Refused, match="at most 20 blocks, got 21"):
        await engine.prefill_tokens("a", prompt_of(8, answer_tokens=1_200))


@virtual
async def test_a_request_that_comes_during_a_step_is_admitted_after_it() -> None:
    """It finds what that step of 0.6 s has computed; the ten tokens that are left of the first go before its own."""
    engine = BatchingEngine(PROFILE, BATCHING)
    first = asyncio.ensure_future(timed(engine, "a", prompt_of(5)))
    await asyncio.sleep(0.2)
    assert engine.load().waiting == 0
    second = asyncio.ensure_future(timed(engine, "b", prompt_of(8)))
    await asyncio.sleep(0.2)
    assert (engine.load().waiting, engine.load().kv_blocks_used) == (1, 6)
    took_s, prefilled = await second
    assert (prefilled.local_tokens, prefilled.computed_tokens) == (500, 310)
    assert took_s == pytest.approx(0.4 + 0.1 + 0.01 + 0.31)
    assert (await first)[1].computed_tokens == 510


@virtual
async def test_prompts_that_come_together_are_computed_once() -> None:
    """Both are admitted to one step: the second one finds what that step is to compute of the first."""
    engine = BatchingEngine(PROFILE, BATCHING)
    both = await asyncio.gather(timed(engine, "a", prompt_of(3)), timed(engine, "b", prompt_of(3)))
    assert [(each.local_tokens, each.computed_tokens) for _, each in both] == [(0, 310), (300, 10)]
    assert [took_s for took_s, _ in both] == pytest.approx([0.1 + 0.32] * 2)


@virtual
async def test_a_step_that_is_full_admits_nobody() -> None:
    """The first prompt fills two steps but for a part: the second one comes into the second of them."""
    engine = BatchingEngine(PROFILE, BATCHING)
    first = asyncio.ensure_future(timed(engine, "a", prompt_of(8)))
    second = asyncio.ensure_future(timed(engine, "b", prompt_of(1, seed=1)))
    await asyncio.sleep(0.3)
    assert (engine.load().waiting, engine.load().kv_blocks_used) == (1, 9)
    assert (await first)[0] == (await second)[0] == pytest.approx(0.6 + 0.1 + 0.31 + 0.11)


@virtual
async def test_a_client_that_leaves_takes_its_request_out_of_the_step() -> None:
    """Its blocks are given up at once; the step goes on, and what it computes is found, as in engines."""
    engine = BatchingEngine(PROFILE, BATCHING)
    left = asyncio.ensure_future(engine.prefill_tokens("a", prompt_of(4)))
    stays = asyncio.ensure_future(timed(engine, "b", prompt_of(1, seed=1)))
    await asyncio.sleep(0.2)
    left.cancel()
    await asyncio.sleep(0)
    assert engine.load().kv_blocks_used == 2
    assert (await stays)[0] == pytest.approx(0.1 + 0.5 + 0.1 + 0.02)
    assert engine.pool.match(prompt_of(4).blocks) == 4


@virtual
async def test_a_client_that_leaves_while_it_waits_is_never_admitted() -> None:
    engine = BatchingEngine(PROFILE, BATCHING)
    first = asyncio.ensure_future(timed(engine, "a", prompt_of(4)))
    await asyncio.sleep(0.2)
    waits = asyncio.ensure_future(engine.prefill_tokens("b", prompt_of(4, seed=1)))
    await asyncio.sleep(0.1)
    waits.cancel()
    await first
    assert engine.computed_tokens == 410
    assert (engine.load().waiting, engine.pool.referenced) == (0, 0)


@virtual
async def test_dying_ends_what_runs() -> None:
    engine = BatchingEngine(PROFILE, BATCHING)
    running = asyncio.ensure_future(engine.prefill_tokens("a", prompt_of(8)))
    await asyncio.sleep(0.2)
    engine.die()
    with pytest.raises(Refused):
        await running
    assert engine.pool.referenced == 0
    assert engine.steps.requests == 0


class Heard(Alone):
    """The sharing of an engine without peers; keeps when each prompt was reported."""

    def __init__(self) -> None:
        self.at_s: dict[str, float] = {}

    def received(self, chain: PromptChain) -> None:
        self.at_s[chain.request] = asyncio.get_running_loop().time()


@virtual
async def test_prompts_are_reported_when_the_scheduler_sees_them() -> None:
    """That is between two steps: the second one comes during the step of 0.6 s of the first."""
    heard, began_at = Heard(), asyncio.get_running_loop().time()
    engine = BatchingEngine(PROFILE, BATCHING, heard)
    first = asyncio.ensure_future(timed(engine, "a", prompt_of(5)))
    await asyncio.sleep(0.2)
    await timed(engine, "b", prompt_of(5, seed=1))
    assert [heard.at_s[name] - began_at for name in "ab"] == pytest.approx([0.0, 0.6])
    await first


class Pair:
    """Two engines over one index in memory; the second one can pull from the first."""

    def __init__(self) -> None:
        clock = asyncio.get_running_loop().time
        index, store = MemoryIndex(clock=clock), MemoryCoordinationStore(clock=clock)
        records = [make_record("one"), make_record("two")]
        connectors = [
            Connector(index, store, record, lease_ttl_s=1e6, peers=lambda: [ref_of(records[0])], at_once=True)
            for record in records
        ]
        for connector in connectors:
            connector.join()
        self.one, self.two = (BatchingEngine(PROFILE, BATCHING, connector) for connector in connectors)


@virtual
async def test_pulls_pass_beside_computing() -> None:
    """A pull of 0.8 s delays its own prompt, and not the one that comes after it."""
    pair = Pair()
    await timed(pair.one, "a", prompt_of(8))
    await asyncio.sleep(PROFILE.publish_s)
    pulled, cold = await asyncio.gather(timed(pair.two, "b", prompt_of(8)), timed(pair.two, "c", prompt_of(3, seed=1)))
    assert pulled[0] == pytest.approx(0.8 + 0.11)
    assert cold[0] == pytest.approx(0.1 + 0.31)
    assert (pulled[1].pulled_tokens, pulled[1].computed_tokens) == (800, 10)


@virtual
async def test_what_the_peer_evicts_during_the_pull_is_computed() -> None:
    pair = Pair()
    await timed(pair.one, "a", prompt_of(8))
    await asyncio.sleep(PROFILE.publish_s)
    pulling = asyncio.ensure_future(timed(pair.two, "b", prompt_of(8)))
    await asyncio.sleep(0.4)
    pair.one.evict_all()
    assert (await pulling)[1].computed_tokens == 810


@virtual
async def test_room_that_a_pull_gives_up_is_taken_at_once() -> None:
    """Nothing is computed meanwhile: no step's end has the waiting request looked at again."""
    pair = Pair()
    await timed(pair.one, "a", prompt_of(8))
    await asyncio.sleep(PROFILE.publish_s)
    pulling = asyncio.ensure_future(pair.two.prefill_tokens("b", prompt_of(8, answer_tokens=900)))
    waits = asyncio.ensure_future(timed(pair.two, "c", prompt_of(3, seed=1)))
    await asyncio.sleep(0.4)
    assert pair.two.load().waiting == 1
    pulling.cancel()
    assert (await waits)[0] == pytest.approx(0.4 + 0.1 + 0.31)
