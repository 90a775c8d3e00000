"""The host tier of a simulated worker: what its engine's cache evicts. Which blocks stay, `TierRetention` decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ghostcacher_connector.core.retention.base import BlockTraits, Evicted
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import BlockHash, SectionType
from ghostcacher_simulator.load.requests import Request
from ghostcacher_simulator.machines.workers import HostTier
from ghostcacher_simulator.pool import HeldBlock


class _Known(NamedTuple):
    """What a block's prompt says of it."""

    parent: BlockHash | None
    traits: BlockTraits


class HostBlocks:
    """Blocks in host slots. Slots are numbered from 0 within the tier; a slot's generation grows with each reuse."""

    def __init__(self, spec: HostTier, clock: Callable[[], float], in_engine: Callable[[BlockHash], bool]) -> None:
        """in_engine: says whether the engine's cache has a block, too."""
        settings = RetentionSettings(eviction_policy=spec.policy)  # type: ignore[arg-type]
        self.spec = spec
        self._in_engine = in_engine
        self._tier = TierRetention(settings, spec.blocks, clock=clock)
        self._held: dict[BlockHash, HeldBlock] = {}
        self._free = list(range(spec.blocks - 1, -1, -1))
        self._generations: Counter[int] = Counter()
        self._contents: dict[int, BlockHash] = {}
        self._known: dict[BlockHash, _Known] = {}

    def __repr__(self) -> str:
        return f"HostBlocks({len(self._held)} of {self.spec.blocks} slots)"

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, block: BlockHash) -> bool:
        return block in self._held

    def asked(self, request: Request) -> None:
        """Note the blocks of a prompt that has come, and that it uses those that are here."""
        blocks, tokens = request.prompt.blocks, request.block_tokens
        sections, parent = iter(request.section_ends), None
        section, end = next(sections, (SectionType.SESSION, request.prompt.tokens))
        for depth, block in enumerate(blocks):
            while end < (depth + 1) * tokens:
                section, end = next(sections, (section, request.prompt.tokens))
            traits = BlockTraits(section, depth, tokens, 1, prompt_blocks=len(blocks))
            self._known[block] = _Known(parent, traits)
            self._tier.touch(block, traits)
            parent = block

    def prefix(self, blocks: Sequence[BlockHash]) -> int:
        """Return how many leading blocks are here or in the engine's cache."""
        for number, block in enumerate(blocks):
            if block not in self._held and not self._in_engine(block):
                return number
        return len(blocks)

    def take(self, block: BlockHash) -> tuple[HeldBlock | None, list[BlockHash]]:
        """Take in a block that the engine has evicted, or refuse it; return where it is, and what had to go for it."""
        if block in self._held:
            return self._held[block], []
        known = self._known.get(block)
        if known is None:
            return None, []
        insertion = self._tier.insert(block, known.parent, known.traits)
        gone = self._let_go(insertion.evicted)
        if not insertion.admitted:
            self._known.pop(block, None)
            return None, gone
        slot = self._free.pop()
        self._generations[slot] += 1
        self._contents[slot] = block
        self._held[block] = held = HeldBlock(block, slot, self._generations[slot])
        return held, gone

    def pin(self, blocks: Sequence[BlockHash]) -> list[BlockHash]:
        """Keep those of the blocks that are here until `unpin`, while they are read; return which."""
        pinned = [block for block in blocks if block in self._held]
        for block in pinned:
            self._tier.pin(block)
        return pinned

    def unpin(self, blocks: Sequence[BlockHash]) -> None:
        """End one `pin`. blocks: what it returned."""
        for block in blocks:
            self._tier.unpin(block)

    def check_invariants(self) -> None:
        """Raise AssertionError where blocks, slots and the retention's view do not fit together."""
        assert len(self._held) + len(self._free) == self.spec.blocks, f"{self!r}: slots are lost"
        assert len(self._held) == len(self._tier), f"{self!r}: the retention knows {len(self._tier)} blocks"
        for block, held in self._held.items():
            assert block in self._tier, f"{self!r}: the retention does not know a block"
            at = (self._contents[held.slot], self._generations[held.slot])
            assert at == (block, held.generation), f"{self!r}: slot {held.slot} holds another block than it should"

    def expire(self) -> list[BlockHash]:
        """Let those go whose time is over; return them."""
        return self._let_go(self._tier.expire())

    def _let_go(self, evicted: Sequence[Evicted]) -> list[BlockHash]:
        gone = [each.key for each in evicted]
        for block in gone:
            self._free.append(self._held.pop(block).slot)
            if not self._in_engine(block):
                self._known.pop(block, None)
        return gone

    def generation(self, slot: int) -> int:
        """Return how often a slot was reused."""
        return self._generations[slot]

    def content(self, slot: int) -> BlockHash | None:
        """Return the block whose KV lies in a slot; None before the first one."""
        return self._contents.get(slot)
