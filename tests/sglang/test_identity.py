"""What of the fingerprint comes from SGLang's own functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str

from ghostcacher_connector.engines.sglang.identity import known_hash, layout_switches, numerics
from ghostcacher_connector.identity.fingerprint import KNOWN_BLOCK_TOKENS, KNOWN_TOKENS


def test_known_hash_is_what_the_tree_gives_the_known_prompt() -> None:
    """The hash in the fingerprint is the one under which the radix cache's second page of this prompt is offered."""
    pages = get_storage_hash_str(RadixKey(list(KNOWN_TOKENS), extra_key=None), page_size=KNOWN_BLOCK_TOKENS)
    assert len(pages) == 2
    assert pages[-1] == known_hash()


@pytest.mark.parametrize(
    ("read", "variable"),
    [(numerics, "SGLANG_ENABLE_DETERMINISTIC_INFERENCE"), (layout_switches, "SGLANG_USE_HND_KVCACHE")],
)
def test_variables_are_read_as_sglang_reads_them(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[], str], variable: str
) -> None:
    """Unset, 0 and false are one thing to SGLang, and so are 1, yes and true."""
    monkeypatch.delenv(variable, raising=False)
    found: dict[str | None, str] = {None: read()}
    for value in ("0", "false", "no", "1", "true", "YES"):
        monkeypatch.setenv(variable, value)
        found[value] = read()
    assert found[None] == found["0"] == found["false"] == found["no"]
    assert found["1"] == found["true"] == found["YES"] != found["0"]
