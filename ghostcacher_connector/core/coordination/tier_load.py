"""What a worker reports of one tier below its engine's cache, as a part of its load."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ghostcacher_connector.core.types import SectionType, Tier

_Count = Annotated[int, Meta(ge=0, le=1 << 53)]


class TierLoad(msgspec.Struct, frozen=True, array_like=True):
    """One tier of a worker. Counts are since its start."""

    tier: Tier
    blocks: _Count
    """Blocks that it holds now."""
    blocks_max: _Count
    """Blocks that it has room for."""
    blocks_by_section: Annotated[tuple[_Count, ...], Meta(max_length=len(SectionType))]
    """How many of its blocks, those on their way there included, are of each type, in the order of `SectionType`."""
    loaded_blocks: _Count
    """Blocks that requests of this worker have taken from it, and that were right."""
    evicted_blocks: _Count
    """Blocks that made room for others, or whose time was over."""
    refused_blocks: _Count
    """Blocks that were not worth what would have had to go."""
    copies_under_way: _Count
    """Copies that are ordered and not done."""
