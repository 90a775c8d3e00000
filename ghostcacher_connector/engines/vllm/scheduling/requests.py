"""What the scheduler's half remembers of each request, from its arrival to its end."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.sections import BlockSections, block_sections, decode_hint, retain_wanted
from ghostcacher_connector.core.types import BlockHash
from ghostcacher_connector.engines.common.pull_state import PullState
from ghostcacher_connector.engines.vllm.scheduling.adapters import BASE, AdaptedBlocks, Adapter
from ghostcacher_connector.engines.vllm.scheduling.request_names import ids_are_unique, router_request_id
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.tiers.candidates import Candidate

if TYPE_CHECKING:
    from vllm.v1.request import Request


TENANT_BYTES = 8
"""Two tenants of one digest would share a quota, and nothing else."""


@dataclass(slots=True)
class Evidence:
    """How far the blocks of one request are proven, from one match of its prompt until it is preempted or ends.

    Block i is *sound* when block i - 1 is, and its slots are marked as computed (slot_watch.py): one in each KV cache
    group whose window has not moved on from it.
    """

    given: int | None = None
    """Blocks ``[0, given)`` held KV before the request's first step; others computed them, or a pull brought them.
    None before that step."""
    sound: int = 0
    """Blocks ``[0, sound)`` are sound."""
    filled: int = 0
    """Blocks ``[0, filled)`` were given, or are filled by steps that have been noted."""
    tainted: bool = False
    """Nothing that the request computes from now on proves anything."""


@dataclass(slots=True)
class Tracked(PullState):
    """One request."""

    request: Request
    """vLLM's own object of it."""
    adapter: Adapter | None = None
    """The LoRA adapter that it is computed with; None for the model alone."""
    shared_end: int | None = None
    """Blocks from this one on may have one hash and several contents (items.py); None: none may."""
    ambiguous: bool = False
    """Whether another request may have given one of its items another content since it arrived."""
    evidence: Evidence = field(default_factory=Evidence)
    """A new one with each match: after a preemption the request begins again, in other slots."""
    joins_until: float = math.inf
    """Until when it may wait for pulls of other requests, on the matcher's clock; infinite before the first one."""
    fetched: bool = False
    """Whether blocks of it were fetched from objects, or were to be: once for each request."""
    turn_by: float | None = None
    """By when its pull no longer waits for others, on the matcher's clock; None before it was to wait."""
    room_by: float | None = None
    """By when its pull no longer waits for room beside other pulls, on the matcher's clock; None before it waited."""
    preemptions: int = 0
    """How often it had been preempted when it was last asked for."""
    ordered_at: float = 0.0
    """When its pull was ordered, on the matcher's clock."""
    _adapted: AdaptedBlocks | None = None

    @property
    def trace_headers(self) -> Mapping[str, str] | None:
        headers: Mapping[str, str] | None = self.request.trace_headers
        return headers

    @property
    def request_id(self) -> str:
        return str(self.request.request_id)

    @property
    def blocks(self) -> Sequence[BlockHash]:
        """What its full blocks are called in the fleet, as far as their hashes cover their content.

        None of them is, as long as the content of its adapter is not known.
        """
        hashes: Sequence[BlockHash] = self.request.block_hashes
        if self.request.lora_request is not None:
            if self.adapter is None or (digest := self.adapter.digest) is None:
                return ()
            if self._adapted is None:
                self._adapted = AdaptedBlocks(self.request, digest)
            hashes = self._adapted.names()
        return hashes if self.shared_end is None else hashes[: self.shared_end]

    @property
    def computed_by(self) -> bytes | None:
        """The digest of what it is computed with; None as long as that is not known, or may be one of several."""
        if self.ambiguous:
            return None
        if self.request.lora_request is None:
            return BASE
        return self.adapter.digest if self.adapter is not None and self.adapter.shared else None

    @property
    def adapter_order(self) -> tuple[int, bytes] | None:
        """vLLM's number of its adapter, and the digest under which its blocks are looked up."""
        if self.adapter is None or self.adapter.digest is None:
            return None
        return self.request.lora_request.lora_int_id, self.adapter.digest

    def traits_of(self, index: int, block_tokens: int, block_bytes: int) -> BlockTraits:
        return BlockTraits(
            self.sections.section_of(index),
            index,
            block_tokens,
            block_bytes,
            self.tenant,
            self.sections.retain_s(index),
            prompt_blocks=self.request.num_prompt_tokens // block_tokens,
            tools=self.tools,
            needed=self.needs(index),
        )


def candidate_of(tracked: Tracked, index: int, block_tokens: int, block_bytes: int) -> Candidate:
    """Describe a block, the index-th of a request, to the tiers. block_bytes: of one block on one rank."""
    hashes, sections = tracked.blocks, tracked.sections
    return Candidate(
        hashes[index],
        hashes[0],
        hashes[index - 1] if index else None,
        tracked.traits_of(index, block_tokens, block_bytes),
        sections.session_of(index),
        sections.after_tools(index),
    )


def shareable(tracked: Tracked) -> bool:
    """Say whether what this request's blocks are called means the same on every worker.

    A streaming session may exchange its last tokens after they were hashed.
    """
    return tracked.computed_by is not None and not tracked.request.resumable


def tenant_of(request: Request) -> bytes | None:
    """Return a digest of the request's ``cache_salt``, which names its tenant; None without one."""
    salt = request.cache_salt
    return hashlib.blake2b(salt.encode(), digest_size=TENANT_BYTES).digest() if salt else None


def pull_wanted(request: Request) -> bool:
    """Say whether the client left pulling on (``kv_transfer_params: {"gc_pull": false}`` turns it off)."""
    params = request.kv_transfer_params
    return not (isinstance(params, dict) and params.get("gc_pull") is False)


class SectionReader:
    """Reads what a request tells of the parts of its prompt, once, when it arrives."""

    def __init__(self, recorder: Recorder, block_tokens: int) -> None:
        self._recorder, self._block_tokens = recorder, block_tokens
        self._unique = ids_are_unique()

    def read(self, request: Request) -> BlockSections:
        """Return what the blocks of a request's prompt belong to. What is malformed says nothing, and is counted."""
        hint = decode_hint(router_request_id(request.request_id, unique=self._unique))
        return block_sections(hint, request.num_prompt_tokens, self._block_tokens, self._retain_s(request))

    def _retain_s(self, request: Request) -> float:
        params = request.kv_transfer_params
        if not isinstance(params, dict) or (asked := params.get("gc_retain_s")) is None:
            return 0.0
        retain_s = retain_wanted(asked)
        if retain_s is None:
            self._recorder.inc("gc_bad_retentions_total")
        return retain_s or 0.0
