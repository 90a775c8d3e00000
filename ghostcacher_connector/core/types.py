"""The nouns that all parts share. Nothing here knows an engine, Redis or NIXL.

*slot*: a place for one block in a tier. *generation*: how often a slot was reused. *incarnation*: one
run of a worker's process, 16 random bytes. An index entry is a hint; generation and incarnation make it checkable.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Annotated, NamedTuple

import msgspec

BlockHash = bytes
"""Chain hash of a block as the engine computes it: it covers the block's tokens and its whole prefix."""

INCARNATION_BYTES = 16
OWN_INCARNATION = b""
"""Stands for the worker's own present life where host slots of its own are named: its ledger lives as long as it, and
an entry of a former life names that one's incarnation."""

DATA_PARALLEL_RANKS_MAX = 1 << 16


class Tier(IntEnum):
    """Where a slot lies. The value is stored in the index: never renumber."""

    DEVICE = 0
    HOST = 1
    OBJECT = 2


class SectionType(IntEnum):
    """What a section of a prompt is, in the order in which templates use them. The value is stored: never renumber."""

    TOOLS = 0
    SYS = 1
    DOC = 2
    SESSION = 3
    USER = 4


class FlushScope(str, Enum):
    """What an order to flush names. Routers and workers send each other the values."""

    SESSION = "session"
    """A session: to which worker it is bound, and the blocks of its history, without what it shares with others."""
    DOC = "doc"
    """The documents of a prompt: where they were seen, their blocks, and all that follow them."""
    PREFIX = "prefix"
    """A whole prompt: where it was seen, its last blocks and all that follow them, and those before them that nothing
    else follows."""
    TOOLS = "tools"
    """The blocks of all tools, and all that follow them."""
    ALL = "all"
    """Everything."""


class Role(str, Enum):
    """What a worker does with the shared cache (vLLM's ``kv_role``)."""

    PRODUCER = "kv_producer"
    CONSUMER = "kv_consumer"
    BOTH = "kv_both"

    @property
    def publishes(self) -> bool:
        return self is not Role.CONSUMER

    @property
    def pulls(self) -> bool:
        return self is not Role.PRODUCER


class PdRole(str, Enum):
    """What an engine does where those that compute prompts and those that answer are apart."""

    PREFILL = "prefill"
    """It computes prompts, and hands them over."""
    DECODE = "decode"
    """It answers, with prompts that were handed over to it, or that it computes itself."""


class Location(NamedTuple):
    """Where a block is, at the time of publishing."""

    tier: Tier
    slot: int
    generation: int


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """One strided array of slots in a rank's memory (a layer's K, V, or both packed).

    The bytes of slot ``s`` are ``[base + s * stride_bytes, ... + slot_bytes)``; ``stride_bytes >= slot_bytes``.
    """

    base: int
    stride_bytes: int
    slot_bytes: int


class SlotMemory(msgspec.Struct, frozen=True, array_like=True):
    """The slots that a rank has in one tier, numbered from 0 within it."""

    tier: Tier
    slot_count: int
    segments: tuple[Segment, ...]
    """The arrays of slots; a block is one slot of each."""

    memory: str = "DRAM"
    """NIXL's memory type of the segments, "DRAM" or "VRAM"."""

    device: int = 0
    """Device number of the segments' memory."""

    @property
    def slot_bytes(self) -> tuple[int, ...]:
        """The size of a slot's row in each segment."""
        return tuple(segment.slot_bytes for segment in self.segments)

    @property
    def bytes_per_slot(self) -> int:
        return sum(segment.slot_bytes for segment in self.segments)


class RankEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """All that a peer needs in order to read one rank's KV memory and its seal."""

    rank: int
    incarnation: bytes
    memories: tuple[SlotMemory, ...]
    """The engine's slots, then those in host memory, if any: one row sizes, one slot table, and one numbering that goes
    on from each memory to the next."""

    table: int
    """Address of the slot table (slots.py), always in host memory."""

    agent_name: str
    """Name of the rank's NIXL agent."""

    agent_metadata: bytes
    """NIXL's own serialised description of the agent; opaque, never unpickled."""

    relay: str | None
    """"host:port" of the relay process that serves readers who share neither memory nor RDMA."""

    host: str
    """Identity of the machine's kernel boot, equal for workers that may share memory."""

    @property
    def slot_count(self) -> int:
        """How many slots all memories have, and the slot table."""
        return sum(memory.slot_count for memory in self.memories)

    @property
    def slot_bytes(self) -> tuple[int, ...]:
        """The size of a slot's row in each segment, in any memory."""
        return self.memories[0].slot_bytes

    @property
    def bytes_per_slot(self) -> int:
        return self.memories[0].bytes_per_slot


class OwnerProcess(msgspec.Struct, frozen=True, kw_only=True):
    """The process that speaks for a worker: it alone renews the worker's lease."""

    token: str
    """Random, and this process's own for as long as it lives."""

    host: str
    """Identity of the machine's kernel boot, as in `RankEndpoint`."""

    machine: str
    """The machine's name, for people."""

    pid: int
    """Its number in its own PID namespace."""

    pid_namespace: str
    """Identity of that namespace on the machine: only within it the number means something. Empty when not known."""

    started: int
    """When it started, in clock ticks since the machine's start; 0 when not known. Tells a reused number apart."""


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the fleet knows of a worker, stored under its lease."""

    schema: int
    """Version of the Redis schema that the worker writes."""

    worker: str
    """Stable name, unique in the fleet."""

    incarnation: bytes
    """The incarnation of rank 0, which stands for the worker's."""

    namespace: str
    """Digest of the fingerprint: workers share blocks within one namespace alone."""

    fingerprint: dict[str, str]
    """Every field of the fingerprint, by name, so that a difference can be shown."""

    role: Role
    http: str | None
    """Base URL of its OpenAI-compatible server, if known."""

    block_tokens: int
    started_at: float
    """Seconds since the epoch, by the worker's clock."""

    ranks: tuple[RankEndpoint, ...]
    """In rank order."""

    shares_prefill: bool = True
    """Whether a prompt finds in its cache what another prompt is computing now, or only what is done."""

    data_parallel_rank: Annotated[int, msgspec.Meta(ge=0, lt=DATA_PARALLEL_RANKS_MAX)] | None = None
    """The number by which the server at `http` knows it among its engines; None where the server has one engine.
    Requests are addressed to it by the header X-data-parallel-rank. Versions that do not know the field ignore it."""

    owner: OwnerProcess | None = None
    """The process that speaks for the worker; None of versions that do not say."""

    stamped: bool = False
    """Whether, where there is an `index_key`, its lease has a stamp beside it (core/stamps.py), without which the
    record does not count. False of versions that make none: their records can be put back after their time."""

    takes_flushes: bool = True
    """Whether it carries out routers' orders to drop blocks. Versions that do not say may or may not."""

    pd_role: PdRole | None = None
    """What it does where prefill and decode are apart; None: all of a request, or of versions that do not say."""


class PrefixHit(NamedTuple):
    """The longest run of blocks, from the first one asked for, that one worker holds.

    locations: of blocks ``[0, len(locations))``; may be shorter than ``length`` when the caller asked for
    the locations of the best few workers only.
    """

    worker: str
    incarnation: bytes
    length: int
    locations: tuple[Location, ...]
    windows: tuple[tuple[int, Location], ...] | None = None
    """The blocks of other KV cache groups that a hit of exactly this length needs (pull/cache_groups.py), each as the
    number of the block in its prefix and where it is; None: there are no other groups."""


class MissReason(str, Enum):
    """Why a block was computed though the fleet might have held it. Label values of ``gc_cache_misses_total``.

    Load reports count them in this order: add at the end, and never remove one.
    """

    NOT_INDEXED = "not_indexed"
    INDEX_UNAVAILABLE = "index_unavailable"
    LOOKUP_DEADLINE = "lookup_deadline"
    STALE_GENERATION = "stale_generation"
    PEER_UNREACHABLE = "peer_unreachable"
    FINGERPRINT_MISMATCH = "fingerprint_mismatch"
    MALFORMED_ENTRY = "malformed_entry"
    SLOWER_THAN_RECOMPUTE = "slower_than_recompute"
    TIMEOUT = "timeout"
    TRANSFER_FAILED = "transfer_failed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    DISABLED = "disabled"
