"""Whether a request's images and other items, and its embeddings, are named by their content alone.

What names an item is part of the hash of the blocks that it lies in. See item_marks.py for who says what a name is.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ghostcacher_connector.engines.vllm.item_marks import MARK

if TYPE_CHECKING:
    import torch
    from vllm.v1.request import Request

    from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked

logger = logging.getLogger(__name__)

NAMES_MAX = 100_000
"""Names of items that came without a mark, some 10 MiB; when there are more, no item is shared."""


class ItemBook:
    """See the module's docstring."""

    def __init__(self, dtype: torch.dtype, block_tokens: int) -> None:
        """dtype: of the model; embeddings of another one have the bytes of other numbers."""
        self._dtype, self._block_tokens = dtype, block_tokens
        self._unmarked: set[str] = set()

    def shared_end(self, request: Request, others: Iterable[Tracked]) -> int | None:
        """Return where the leading blocks of a new request end whose hashes cover their content; None: all do.

        others: the requests that have not ended. Those that this one may give another item are not shared any more.
        """
        if not self._embeddings_by_content(request):
            return 0
        if not request.mm_features or self._items_by_content(request):
            return None
        if not _is_marked(request):
            names = _names_of(request)
            self._note(names)
            for other in others:
                if not names.isdisjoint(_names_of(other.request)):
                    other.ambiguous = True
        return self._before_items(request)

    def _embeddings_by_content(self, request: Request) -> bool:
        """vLLM hashes the bytes of embeddings, but not which tokens they stand for where a prompt has both."""
        embeddings = request.prompt_embeds
        return embeddings is None or (request.prompt_is_token_ids is None and embeddings.dtype == self._dtype)

    def _items_by_content(self, request: Request) -> bool:
        """A name that came without a mark may have given vLLM's own caches another item under it."""
        known = len(self._unmarked) < NAMES_MAX and self._unmarked.isdisjoint(_names_of(request))
        # Embeddings of an item that depend on the request's LoRA adapter are named by what that is called.
        plain = all(feature.mm_hash == feature.identifier for feature in request.mm_features)
        return known and plain and _is_marked(request)

    def _before_items(self, request: Request) -> int:
        first: int = min(feature.mm_position.offset for feature in request.mm_features)
        return first // self._block_tokens

    def _note(self, names: set[str]) -> None:
        room = NAMES_MAX - len(self._unmarked)
        if room > 0:
            self._unmarked.update(sorted(names)[:room])
            if len(names) >= room:
                logger.warning(
                    "images and other items are not shared any more: %d names of them are not by content", NAMES_MAX
                )


def _names_of(request: Request) -> set[str]:
    return {feature.identifier for feature in request.mm_features}


def _is_marked(request: Request) -> bool:
    params = request.sampling_params
    return params is not None and params.extra_args is not None and params.extra_args.get(MARK) is True
