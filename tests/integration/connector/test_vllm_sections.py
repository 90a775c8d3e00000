"""What a request tells of the parts of its prompt, as vLLM's real scheduler hands it on (enginesim.py)."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from ghostcacher_connector.core.sections import BlockSections, SectionEnd, encode_hint
from ghostcacher_connector.core.types import SectionType
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS

pytestmark = pytest.mark.engine

HINT = encode_hint([SectionEnd(SectionType.SYS, 400, 300), SectionEnd(SectionType.USER, 800)])


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
