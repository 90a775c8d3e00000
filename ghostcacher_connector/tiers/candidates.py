"""What the host tier is told of a block that it may hold, and tells once it holds it."""

from __future__ import annotations

from typing import NamedTuple

from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.types import BlockHash


class Candidate(NamedTuple):
    """A block that the engine has, and the tier has not."""

    block: BlockHash
    root: BlockHash
    """The first block of its chain."""
    parent: BlockHash | None
    """The block before it; None for the first one."""
    traits: BlockTraits
    session: bytes | None = None
    """The tag of the session that it belongs to; None for what sessions share, and when not known."""
    after_tools: bool = False
    """Whether it is one of tools, or comes after some."""


class Copied(NamedTuple):
    """A block that lies in a host slot on every rank from now on."""

    slot: int
    candidate: Candidate
    generation: int
