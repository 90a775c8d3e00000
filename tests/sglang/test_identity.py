"""What of the fingerprint comes from SGLang's own functions."""

from __future__ import annotations

from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str

from ghostcacher_connector.engines.sglang.identity import known_hash
from ghostcacher_connector.identity.fingerprint import KNOWN_BLOCK_TOKENS, KNOWN_TOKENS


def test_known_hash_is_what_the_tree_gives_the_known_prompt() -> None:
    """The hash in the fingerprint is the one under which the radix cache's second page of this prompt is offered."""
    pages = get_storage_hash_str(RadixKey(list(KNOWN_TOKENS), extra_key=None), page_size=KNOWN_BLOCK_TOKENS)
    assert len(pages) == 2
    assert pages[-1] == known_hash()
