"""What a request tells of the parts of its prompt, as vLLM's real scheduler hands it on (enginesim.py)."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from ghostcacher_connector.core.sections import (
    BlockSections,
    SectionEnd,
    encode_hint,
    session_tag,
    tools_tag,
    with_tags,
)
from ghostcacher_connector.core.types import SectionType
from ghostcacher_connector.metrics import merge
from ghostcacher_connector.metrics.catalog import SEPARATOR
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import LAYERS, SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, tokens_of

pytestmark = pytest.mark.engine

GIB = 1 << 30
HINT = encode_hint([SectionEnd(SectionType.SYS, 400, 300), SectionEnd(SectionType.USER, 800)])

TOOL_BLOCKS = 4
BLOCK_BYTES = LAYERS * BLOCK_TOKENS * 2 * 8


def ask(engine: SimEngine, tools: str, question: int, *, session: str = "alice") -> list[int]:
    """Serve a prompt with some tools, and a document behind them; return its tokens."""
    tokens = tokens_of(ord(tools), TOOL_BLOCKS * BLOCK_TOKENS) + tokens_of(question, 2 * BLOCK_TOKENS + 1)
    ends = [SectionEnd(SectionType.TOOLS, TOOL_BLOCKS * BLOCK_TOKENS), SectionEnd(SectionType.DOC, len(tokens))]
    hint = with_tags(encode_hint(ends), tools=tools_tag(b"be kind", tools.encode(), 7), session=session_tag(session, 7))
    name = f"cmpl-r{len(engine.requests)}{hint}-0-0a1b2c3d"
    engine.add(name, tokens)
    engine.run()
    assert engine.wrong == []
    assert engine.outputs(name) == expected_output(tokens, 4)
    return tokens


def sections_of(engine: SimEngine, request_id: str) -> BlockSections:
    sections: BlockSections = engine.connector._scheduler._tracked[request_id].sections
    return sections


@pytest.mark.parametrize(
    "request_id", [f"cmpl-mine{HINT}-0-0a1b2c3d", f"chatcmpl-mine{HINT}-0a1b2c3d", f"0_chatcmpl-mine{HINT}-0a1b2c3d"]
)
def test_sections_behind_the_routers_id_reach_the_blocks(make: Make, request_id: str) -> None:
    """Half of the bytes are half of the tokens; the answer's blocks are the session's."""
    engine = make()
    engine.add(request_id, list(range(8 * BLOCK_TOKENS)))
    sections = sections_of(engine, request_id)
    assert [sections.section_of(block).name for block in range(9)] == ["SYS"] * 4 + ["USER"] * 4 + ["SESSION"]
    assert [sections.retain_s(block) for block in (0, 3, 4)] == [300, 300, 0]
    engine.run()


def test_request_of_nobody_has_sections_by_position(make: Make) -> None:
    """All but the block with the last token may be shared."""
    engine = make()
    engine.add("r", list(range(4 * BLOCK_TOKENS)))
    sections = sections_of(engine, "r")
    assert [sections.section_of(block).name for block in range(5)] == ["DOC"] * 3 + ["USER", "SESSION"]
    engine.run()


@pytest.mark.parametrize(
    ("value", "kept", "bad"), [(60, 60.0, 0), (0, 0.0, 0), (None, 0.0, 0), ("1h", 0.0, 1), (-1, 0.0, 1)]
)
def test_client_asks_for_its_blocks_to_be_kept(make: Make, value: Any, kept: float, bad: int) -> None:
    """Whatever it asks for, it is served; what is no time is counted."""
    engine = make()
    engine.add("r", list(range(4 * BLOCK_TOKENS)), transfer={"gc_retain_s": value})
    assert sections_of(engine, "r").retain_s(0) == kept
    engine.run()
    assert engine.counted("gc_bad_retentions_total") == bad


def test_blocks_of_tools_that_a_conversation_has_replaced_go_first(make: Make) -> None:
    """From the host tier, before anything else; as long as nobody else uses them."""
    settings = {"host_tier_gib": 12.5 * BLOCK_BYTES / GIB, "hbm_swap_threshold": 0.0, "eviction_policy": "lru"}
    engine = make(blocks=9, settings=settings)
    ask(engine, "A", 1)
    ask(engine, "C", 2, session="bob")
    ledger = engine.connector._scheduler._copying.tier.ledger
    assert len(ledger) == 12
    ask(engine, "B", 3)
    assert len(ledger) == 12
    assert evicted(engine) == {("tools", "aged"): 4, ("doc", "aged"): 2}, "all of A, and nothing of C"
    kept = list(engine.requests.values())[1].block_hashes[: TOOL_BLOCKS + 2]
    assert all(map(ledger.holds, kept))


def test_replaced_tools_that_somebody_uses_are_as_any_others(make: Make) -> None:
    """Another conversation, after one has replaced them."""
    settings = {"host_tier_gib": 12.5 * BLOCK_BYTES / GIB, "hbm_swap_threshold": 0.0, "eviction_policy": "lru"}
    engine = make(blocks=32, settings=settings)
    ask(engine, "A", 1)
    ask(engine, "B", 3)
    ask(engine, "A", 1, session="bob")
    ask(engine, "C", 2, session="carol")
    assert evicted(engine, "aged") == {}


def evicted(engine: SimEngine, reason: str = "") -> dict[tuple[str, str], float]:
    """Return the evictions from the host tier by type and reason."""
    scheduler = engine.connector._scheduler
    scheduler._copying.tier._record_at = 0.0
    engine.delta = merge(engine.delta, scheduler.take_metrics())
    found = engine.delta.get("gc_tier_evicted_blocks_total", {})
    split = {tuple(key.split(SEPARATOR)[1:]): value for key, value in found.items()}
    return {(kind, why): float(value) for (kind, why), value in split.items() if why.startswith(reason)}
