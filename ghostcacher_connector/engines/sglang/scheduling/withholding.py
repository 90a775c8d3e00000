"""Tells pages whose names mean something on this engine only: those are never offered to others.

SGLang names a page by its tokens, those before it, and a key. The key of a request with a LoRA adapter ends with a
random or file-independent id of the adapter, and a multimodal item stands in the tokens as a number made from its
content, too short to name it. So what such a request computes, and all that is computed on top of it, is told by the
tokens and the key of its path in SGLang's tree.

Driven by the scheduler's thread alone, by all ranks alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import NodeId, UnifiedTreeCoreInterface

ADAPTERS_MAX = 65_536
"""Ids of adapters that are remembered: each time that one is loaded it has another. Beyond, no key is believed."""

FIRST_ITEM = MM_PAD_SHIFT_VALUE
"""Token ids from here on stand for items."""


class Withholding:
    """What one engine has seen that its pages' names do not tell."""

    def __init__(self) -> None:
        self._adapters: set[str] = set()

    def arrived(self, req: Req) -> None:
        """A request has entered the queue, before anything of it is computed."""
        if req.lora_id is not None and len(self._adapters) < ADAPTERS_MAX:
            self._adapters.add(req.lora_id)

    def withholds(self, tree: UnifiedTreeCoreInterface, node: NodeId) -> bool:
        """Say whether the pages of a tree node are not to be offered."""
        return any(key is None or self._of_adapter(key.extra_key) or _has_item(key) for key in _path(tree, node))

    def _of_adapter(self, extra_key: str | None) -> bool:
        if not extra_key or not self._adapters:
            return False
        return len(self._adapters) >= ADAPTERS_MAX or any(extra_key.endswith(adapter) for adapter in self._adapters)


def _path(tree: UnifiedTreeCoreInterface, node: NodeId) -> Iterator[RadixKey | None]:
    """Yield the keys of a node and those before it, the root left out; None where the tree does not tell one."""
    while True:
        found = tree.snapshot_buffer_backup(node, False)
        yield found.key if found is not None else None
        if found is None or found.parent_is_root:
            return
        node = found.parent_node_id


def _has_item(key: RadixKey) -> bool:
    tokens = np.asarray(key.raw_token_ids(), dtype=np.int64)
    return bool(len(tokens)) and int(tokens.max()) >= FIRST_ITEM
