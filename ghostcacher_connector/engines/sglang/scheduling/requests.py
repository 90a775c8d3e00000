"""What is remembered of each request, from its arrival to its end, and how its blocks are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str

from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.sections import block_sections, decode_hint
from ghostcacher_connector.core.tracing import headers_of
from ghostcacher_connector.core.types import BlockHash, SectionType
from ghostcacher_connector.engines.common.pull_state import PullState
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
    followed: bool = False
    """Whether it has waited for another request's load already (loading.py)."""

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


def track(req: Req, page_tokens: int) -> Tracked:
    """Return what is known of a request that has just arrived."""
    tokens = len(req.origin_input_ids)
    full = tokens // page_tokens
    sections = block_sections(decode_hint(router_request_id(req.rid)), tokens, page_tokens)
    if not shareable(req):
        return Tracked(req, [], sections=sections)
    key = RadixKey(req.origin_input_ids, extra_key=req.extra_key, cache_salt=req.cache_salt)[: full * page_tokens]
    names = get_storage_hash_str(key, None, page_size=page_tokens) if full else []
    chain = [bytes.fromhex(name) for name in names]
    return Tracked(req, chain, pullable=max(0, tokens - 1) // page_tokens, sections=sections)


def shareable(req: Req) -> bool:
    """Say whether the names of this request's pages mean the same on every worker.

    Pages of images are named by a number made from the image, a LoRA by an id of its server, overridden embeddings by
    nothing at all; a session may hold tokens that are not in its prompt.
    """
    return (
        req.lora_id is None
        and req.multimodal_inputs is None
        and req.input_embeds is None
        and req.positional_embed_overrides is None
        and req.session is None
    )
