"""Requests with sliding windows that vLLM preempts in the very step in which it has scheduled them.

They leave blocks in its prefix cache that no step computes, in every KV cache group (windowsim.py).
"""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.conftest import SOAK
from tests.integration.connector.conftest import Make
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, prompts, tokens_of
from tests.integration.connector.simfleet import OUTPUT_TOKENS, found_tokens
from tests.integration.connector.windowsim import FULL_GROUP, KEEP_ALL, WindowEngine

pytestmark = pytest.mark.engine

REQUESTS = 20_000 if SOAK else 120
PRIORITY = {"scheduling_policy": "priority"}
CHUNK = 4
"""Blocks of a prompt that one step computes."""
DOCUMENT = tokens_of(1, 20 * BLOCK_TOKENS)


@pytest.mark.parametrize(("in_flight", "retention"), [(1, KEEP_ALL), (2, {})])
def test_block_hashed_for_a_preempted_request_is_given_to_nobody_in_any_group(
    make: Make, in_flight: int, retention: dict[str, Any]
) -> None:
    """vLLM may preempt a request in the step in which it has scheduled it, and leave blocks that no step computes."""
    options = {**PRIORITY, "long_prefill_token_threshold": 32, "blocks": 40, **retention}
    engine: Any = make("a", kind=WindowEngine, in_flight=in_flight, **options)
    entries, source, urgency = (
        engine.watch_entries(),
        prompts(5, documents=2, blocks=8, tail=60),
        random.Random(in_flight),
    )
    texts = {}
    for number in range(REQUESTS):
        texts[f"r{number}"] = next(source)
        engine.add(
            f"r{number}", texts[f"r{number}"], max_tokens=OUTPUT_TOKENS, priority=urgency.randrange(9), pull=False
        )
        for _ in range(2):
            engine.step()
            assert in_flight > 1 or engine.false_hits() == []
        assert engine.false_entries(entries) == []
    engine.run(timeout_s=120)
    assert (engine.wrong, engine.false_entries(entries)) == ([], [])
    assert all(engine.outputs(name) == expected_output(text, OUTPUT_TOKENS) for name, text in texts.items())
    assert sum(request.num_preemptions for request in engine.requests.values()) > 0


def crowd(engine: WindowEngine, request_id: str) -> list[Any]:
    """Have others take all slots that are free when vLLM next wants some for a request; return the list of them."""
    manager, taken = engine.scheduler.kv_cache_manager, list[Any]()
    allocate = manager.allocate_slots

    def crowded(request: Any, *args: Any, **options: Any) -> Any:
        if request.request_id == request_id and not taken:
            taken.extend(manager.block_pool.get_new_blocks(manager.block_pool.get_num_free_blocks()))
        return allocate(request, *args, **options)

    manager.allocate_slots = crowded
    return taken


def drop_of_the_full_group_alone(engine: WindowEngine) -> None:
    """Break it: what is not computed is taken out of the prefix cache in the group with full attention alone."""
    manager = engine.scheduler.kv_cache_manager
    evict, blocks = manager.evict_blocks, manager.block_pool.blocks

    def some(slots: set[int]) -> None:
        evict({slot for slot in slots if int.from_bytes(blocks[slot].block_hash[-4:], "big") == FULL_GROUP})

    manager.evict_blocks = some


@pytest.mark.parametrize("broken", [False, True])
def test_of_two_blocks_of_one_name_a_window_never_gets_the_one_that_nobody_computed(make: Make, broken: bool) -> None:
    """Another request computes the block in its turn, in other slots; who comes next is given what vLLM finds first."""
    options = {**PRIORITY, "long_prefill_token_threshold": CHUNK * BLOCK_TOKENS, "step_tokens": 96, "blocks": 128}
    engine: Any = make("a", kind=WindowEngine, **options, **KEEP_ALL)
    if broken:
        drop_of_the_full_group_alone(engine)
    low = engine.add("low", DOCUMENT, priority=9, pull=False)
    engine.step()
    engine.add("high", tokens_of(2, BLOCK_TOKENS), priority=0, pull=False)
    engine.step()
    known = low.num_computed_tokens // BLOCK_TOKENS
    taken = crowd(engine, "high")  # at its first token, which needs a slot in every group
    engine.step()
    assert (low.num_preemptions, low.num_computed_tokens) == (1, 0)
    engine.scheduler.kv_cache_manager.block_pool.free_blocks(taken)
    engine.abort("low")
    engine.run()
    longer = DOCUMENT[: (known + 1) * BLOCK_TOKENS]
    first = found_tokens(engine, "first", longer, max_tokens=1, pull=False)
    second = found_tokens(engine, "second", longer + tokens_of(3, 20), pull=False)
    assert (first, second) == (known * BLOCK_TOKENS, len(longer))
    assert bool(engine.wrong) is broken
