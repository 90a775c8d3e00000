"""What is remembered of each request, from its arrival to its end, and how its blocks are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.radix_cache import RadixKey

from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.sections import block_sections, decode_hint
from ghostcacher_connector.core.tracing import headers_of
from ghostcacher_connector.core.types import BlockHash, SectionType
from ghostcacher_connector.engines.common.pull_state import PullState
from ghostcacher_connector.engines.sglang.scheduling.page_names import adapted_names, plain_names
from ghostcacher_connector.engines.sglang.scheduling.request_names import router_request_id

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


@dataclass(slots=True)
class Tracked(PullState):
    """One request."""

    req: Req
    """SGLang's own object of it."""
    chain: list[BlockHash]
    """Hashes of the prompt's full pages; empty when they mean something on this engine only."""
    names: list[BlockHash] = field(default_factory=list)
    """SGLang's own hashes of these pages, where the fleet calls them otherwise; else the same list."""
    adapted: bool = False
    """Whether the fleet calls its pages otherwise than SGLang, since a LoRA adapter computes them."""
    followed: bool = False
    """Whether it has waited for another request's load already (loading.py)."""

    def __post_init__(self) -> None:
        PullState.__post_init__(self)
        self.names = self.names or self.chain

    @property
    def request_id(self) -> str:
        return str(self.req.rid)

    @property
    def trace_headers(self) -> Mapping[str, str] | None:
        """Headers that name SGLang's own span of the request as the parent; None where it traces none.

        SGLang hands a request's trace to its scheduler as a context of OpenTelemetry, not as the client's headers.
        """
        trace = self.req.time_stats.trace_ctx
        context = trace.root_span_context if trace.tracing_enable else None
        return None if context is None else headers_of(context)

    @property
    def blocks(self) -> Sequence[BlockHash]:
        return self.chain

    def traits_of(self, index: int, block_tokens: int, block_bytes: int) -> BlockTraits:
        """Describe a page as it is published, without type and depth (publishing.py): the two are compared."""
        return BlockTraits(
            SectionType.DOC, 0, block_tokens, block_bytes, retain_s=self.sections.retain_s(index), tools=self.tools
        )


def track(req: Req, page_tokens: int, adapter: bytes | None = None) -> Tracked:
    """Return what is known of a request that has just arrived.

    adapter: digest of its LoRA adapter; None without one, and where what it computes is not shared.
    """
    tokens = len(req.origin_input_ids)
    sections = block_sections(decode_hint(router_request_id(req.rid)), tokens, page_tokens)
    if not shareable(req, adapter):
        return Tracked(req, [], sections=sections)
    key = RadixKey(req.origin_input_ids, extra_key=req.extra_key, cache_salt=req.cache_salt)
    names = plain_names(key, page_tokens)
    pullable = max(0, tokens - 1) // page_tokens
    if req.lora_id is None or adapter is None:
        return Tracked(req, names, pullable=pullable, sections=sections)
    chain = adapted_names(key, req.lora_id, adapter, page_tokens)
    return Tracked(req, chain, names=names, adapted=True, pullable=pullable, sections=sections)


def shareable(req: Req, adapter: bytes | None = None) -> bool:
    """Say whether the names of this request's pages mean the same on every worker.

    Pages of images are named by a number made from the image, overridden embeddings by nothing at all; a session may
    hold tokens that are not in its prompt. adapter: digest of its LoRA adapter, as far as it is known.
    """
    return (
        (req.lora_id is None or adapter is not None)
        and req.multimodal_inputs is None
        and req.input_embeds is None
        and req.positional_embed_overrides is None
        and req.session is None
    )
