"""Which LoRA adapter computed what: known by the content that every rank has, never by a name.

vLLM hashes a request's adapter by its name (0.30, where a ``cache_salt`` of that name gives the same hash) or by name
and path (from 0.31 on). Both say who asked for what, not what was computed with: an adapter may be loaded again under
its name, in place or after an eviction, with other content. So a block of such a request is called by a digest of the
adapter's content and the hash that the engine has for the same prompt without an adapter, and:

1. a step's blocks count as computed by a content when every rank reports with that very step that its adapter held it;
2. a block that was computed by another content, or by the model alone, is no evidence for what stands on it
   (slot_watch.py keeps by whom each slot was computed);
3. a name or a path that was seen with two contents, or is reloaded in place, is not shared: the engine's own prefix
   cache may give its requests blocks of either. A reset of that cache ends this.

Driven by the scheduler's thread alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghostcacher_connector.core.types import BlockHash
from ghostcacher_connector.engines.common.adapter_content import adapted

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.request import Request

logger = logging.getLogger(__name__)

BASE = b""
"""In the place of an adapter's digest: the model alone."""

ADAPTERS_MAX = 10_000
"""Adapters that are remembered; what comes beyond is not shared until the prefix cache is reset."""

STEPS_MAX = 1024
"""Far above the steps that vLLM ever has in flight; a longer queue means that outputs no longer arrive."""


@dataclass(slots=True)
class Adapter:
    """One adapter under one name, path and number of vLLM's."""

    names: tuple[str, str]
    """What names it to vLLM's hash: its name and its path."""
    digest: bytes | None = None
    """Of its content, once every rank has told the same; it never changes."""
    shared: bool = True
    """Whether what it computes may be shared; once false, for good."""


class AdapterBook:
    """What is known of the adapters of one engine; see the module's docstring."""

    def __init__(self) -> None:
        self._adapters: dict[int, list[Adapter]] = {}
        self._count = 0
        self._contents: dict[str, bytes] = {}
        self._ambiguous: set[str] = set()
        self._steps: deque[tuple[int, tuple[int, ...]]] = deque(maxlen=STEPS_MAX)

    def __repr__(self) -> str:
        return f"AdapterBook(adapters={self._count}, ambiguous={sorted(self._ambiguous)})"

    def of(self, request: Request) -> Adapter | None:
        """Return what is known of the adapter of a request; None for a request without one."""
        return self.adapter(request.lora_request) if request.lora_request is not None else None

    def adapter(self, lora: LoRARequest) -> Adapter:
        """Return what is known of an adapter."""
        # A path says nothing of a name: they are labels of two kinds.
        names = (f"name {lora.lora_name}", f"path {lora.lora_path}")
        same_number = self._adapters.setdefault(lora.lora_int_id, [])
        adapter = next((each for each in same_number if each.names == names), None)
        if adapter is None:
            room = self._count < ADAPTERS_MAX
            adapter = Adapter(names, shared=room and self._ambiguous.isdisjoint(names))
            if not room:
                return adapter
            same_number.append(adapter)
            self._count += 1
        if lora.load_inplace:
            self._not_shared(adapter, "it is reloaded in place")
        return adapter

    def loaded(self, lora: LoRARequest, ranks: Sequence[Mapping[int, bytes]]) -> None:
        """Note what all ranks hold after this adapter was loaded. ranks: digests by number, of each rank."""
        adapter, digest = self.adapter(lora), agreed(ranks).get(lora.lora_int_id)
        if digest is not None:
            self._learn(adapter, digest)

    def scheduled(self, step: int, requests: Iterable[Request]) -> tuple[int, ...]:
        """Return vLLM's numbers of the adapters that a step computes these requests with, and remember them."""
        if not self._adapters:
            return ()
        numbers = tuple({each.lora_request.lora_int_id for each in requests if each.lora_request is not None})
        if numbers:
            self._steps.append((step, numbers))
        return numbers

    def computed(self, step: int, contents: Mapping[int, bytes]) -> None:
        """Learn what the adapters of a step were, as far as all ranks told the same with it.

        To be called before anything of that step counts as computed. contents: digests by number.
        """
        while self._steps and self._steps[0][0] <= step:
            told, numbers = self._steps.popleft()
            for number in numbers:
                digest = contents.get(number) if told == step else None
                for adapter in self._adapters.get(number, ()):
                    if digest is None:
                        self._not_shared(adapter, "not all ranks say that they have the same")
                    else:
                        self._learn(adapter, digest)

    def forget(self) -> None:
        """Begin anew: the engine's prefix cache holds nothing any more. Requests that have not ended are not shared."""
        for same_number in self._adapters.values():
            for adapter in same_number:
                adapter.shared = False
        self._adapters.clear()
        self._count = 0
        self._contents.clear()
        self._ambiguous.clear()

    def _learn(self, adapter: Adapter, digest: bytes) -> None:
        if adapter.digest is None:
            adapter.digest = digest
        if adapter.digest != digest or any(self._contents.setdefault(name, digest) != digest for name in adapter.names):
            self._not_shared(adapter, "its name or path was seen with another content")

    def _not_shared(self, adapter: Adapter, why: str) -> None:
        """Share nothing any more that has this adapter's name or path."""
        if not self._ambiguous.issuperset(adapter.names):
            logger.warning("LoRA adapter %s, %s: not shared: %s", *adapter.names, why)
        self._ambiguous.update(adapter.names)
        for same_number in self._adapters.values():
            for each in same_number:
                each.shared = each.shared and self._ambiguous.isdisjoint(each.names)


class _WithoutAdapter:
    """A request as it would be hashed without its adapter."""

    lora_request = None

    def __init__(self, request: Request) -> None:
        self._request = request
        self.block_hashes: list[BlockHash] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class AdaptedBlocks:
    """What the blocks of one request with an adapter are called in the fleet, by the engine's own way to hash them."""

    def __init__(self, request: Request, digest: bytes) -> None:
        """digest: of the adapter's content."""
        self._request, self._digest = request, digest
        self._plain = _WithoutAdapter(request)
        self._names: list[BlockHash] = []

    def names(self) -> list[BlockHash]:
        """Return them, one for each block that the engine has hashed by now."""
        count = len(self._request.block_hashes)
        if len(self._names) < count:
            hashes = self._request._block_hasher(self._plain)
            self._plain.block_hashes += hashes
            self._names += [adapted(self._digest, block) for block in hashes]
        return self._names


def agreed(ranks: Sequence[Mapping[int, bytes]]) -> dict[int, bytes]:
    """Return the digests that all ranks tell alike, by number."""
    first, *others = ranks
    return {number: digest for number, digest in first.items() if all(rank.get(number) == digest for rank in others)}
