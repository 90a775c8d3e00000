"""What a request tells of the parts of its prompt, in SGLang."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ghostcacher_connector.core.sections import SectionEnd, encode_hint
from ghostcacher_connector.core.types import SectionType
from ghostcacher_connector.engines.sglang.scheduling.requests import track

PAGE = 16
HINT = encode_hint([SectionEnd(SectionType.SYS, 64, 300), SectionEnd(SectionType.USER, 128)])


def request(rid: str, **fields: Any) -> Any:
    """Return a request as far as its arrival goes; SGLang computes its hashes."""
    shared = {"lora_id": None, "multimodal_inputs": None, "input_embeds": None, "session": None}
    shared |= {"positional_embed_overrides": None, "extra_key": None, "cache_salt": None}
    return SimpleNamespace(rid=rid, origin_input_ids=list(range(8 * PAGE)), **(shared | fields))


@pytest.mark.parametrize("fields", [{}, {"lora_id": "adapter"}])
def test_sections_behind_the_routers_id_reach_the_pages(fields: dict[str, Any]) -> None:
    """Those of requests that cannot be shared, too."""
    sections = track(request(f"mine{HINT}-0a1b2c3d", **fields), PAGE).sections
    assert [sections.section_of(page).name for page in range(9)] == ["SYS"] * 4 + ["USER"] * 4 + ["SESSION"]
    assert [sections.retain_s(page) for page in (3, 4)] == [300, 0]


def test_request_of_nobody_has_sections_by_position() -> None:
    """All but the page with the last token may be shared."""
    sections = track(request("0123456789abcdef"), PAGE).sections
    assert [sections.section_of(page).name for page in range(9)] == ["DOC"] * 7 + ["USER", "SESSION"]
