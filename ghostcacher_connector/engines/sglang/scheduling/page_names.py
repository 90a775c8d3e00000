"""Names pages for the fleet: SGLang's own hashes where these name content, others for adapters, none for items.

SGLang names a page by its tokens, those before it, and a key. The key of a request with a LoRA adapter ends with an id
that names no content: such a page is named by the adapter's digest, and by the hash that it has without the adapter. A
multimodal item stands in the tokens as a number made from its content, too short to name it: a page whose path in
SGLang's tree has one is not offered to others.

Driven by the scheduler's thread alone, by all ranks alike.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str

from ghostcacher_connector.core.types import BlockHash
from ghostcacher_connector.engines.common.adapter_content import adapted
from ghostcacher_connector.engines.sglang.scheduling.adapters import Adapters

if TYPE_CHECKING:
    from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import NodeId, UnifiedTreeCoreInterface

FIRST_ITEM = MM_PAD_SHIFT_VALUE
"""Token ids from here on stand for items."""


def plain_names(key: RadixKey, page_tokens: int) -> list[BlockHash]:
    """Return SGLang's hashes of the full pages of a prompt."""
    whole = len(key) // page_tokens * page_tokens
    names = get_storage_hash_str(key[:whole], None, page_size=page_tokens) if whole else []
    return [bytes.fromhex(name) for name in names]


def adapted_names(key: RadixKey, adapter: str, digest: bytes, page_tokens: int) -> list[BlockHash]:
    """Return what the fleet calls the full pages of a prompt that an adapter of this id and digest computes."""
    own = key.extra_key[: -len(adapter)] if key.extra_key else None
    plain = RadixKey(key.raw_token_ids(), extra_key=own or None, cache_salt=key.cache_salt)
    return [adapted(digest, name) for name in plain_names(plain, page_tokens)]


def offered_names(
    tree: UnifiedTreeCoreInterface, node: NodeId, adapters: Adapters, page_tokens: int
) -> list[BlockHash] | None:
    """Return the fleet's names of a node's pages and those before them in its path; None: they are not to be offered.

    Empty where SGLang's own names are the fleet's.
    """
    keys = _path(tree, node)
    if keys is None or any(_has_item(key) for key in keys):
        return None
    extra_key = keys[-1].extra_key
    if extra_key and adapters.full:
        return None
    adapter = adapters.id_in(extra_key)
    if adapter is None:
        return []
    digest = adapters.digest(adapter)
    if digest is None:
        return None
    tokens = array("q", [token for key in keys for token in key.raw_token_ids()])
    whole = RadixKey(tokens, extra_key=extra_key, cache_salt=keys[-1].cache_salt)
    return adapted_names(whole, adapter, digest, page_tokens)


def _path(tree: UnifiedTreeCoreInterface, node: NodeId) -> list[RadixKey] | None:
    """Return the keys of a node and those before it, the root's left out; None where the tree does not tell one."""
    keys: list[RadixKey] = []
    while True:
        found = tree.snapshot_buffer_backup(node, False)
        if found is None:
            return None
        keys.insert(0, found.key)
        if found.parent_is_root:
            return keys
        node = found.parent_node_id


def _has_item(key: RadixKey) -> bool:
    tokens = np.asarray(key.raw_token_ids(), dtype=np.int64)
    return bool(len(tokens)) and int(tokens.max()) >= FIRST_ITEM
