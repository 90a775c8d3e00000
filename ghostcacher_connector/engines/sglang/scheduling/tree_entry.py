"""Enters pages that were pulled into SGLang's tree, as SGLang enters pages that it has computed.

They stand behind a prefix that was in the tree when the pull began; where SGLang has evicted some of that meanwhile,
there is nothing for them to stand on. Pages that SGLang has computed meanwhile are there twice: its own stay.

Driven by the scheduler's thread alone, by all ranks alike: their trees are equal, page by page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache


def enter_pages(cache: UnifiedRadixCache, tracked: Tracked, first_token: int, token_indexes: torch.Tensor) -> bool:
    """Make pages the tree's, or free them where what comes before them is gone; return whether they are in the tree.

    first_token: position of the first of these tokens in the request's prompt. token_indexes: their places in the pool,
    shape (n,); nobody's but the caller's.
    """
    req = tracked.req
    whole = RadixKey(req.origin_input_ids, extra_key=req.extra_key, cache_salt=req.cache_salt)
    before = _prefix_in_tree(cache, whole[:first_token]) if first_token else token_indexes[:0]
    if len(before) < first_token:
        allocator: Any = cache.token_to_kv_pool_allocator
        allocator.free(token_indexes)
        return False
    key = whole[: first_token + len(token_indexes)]
    value = torch.cat([before, token_indexes])
    cache.insert(InsertParams(key=key, value=value, prev_prefix_len=first_token))
    return True


def _prefix_in_tree(cache: UnifiedRadixCache, key: RadixKey) -> torch.Tensor:
    """Return the places of as many of these tokens as the tree has."""
    found = cache.match_prefix(MatchPrefixParams(key=key))
    places: torch.Tensor = cache.path_device_indices(found.last_device_node)
    return places[: found.device_prefix_len]
