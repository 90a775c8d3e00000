"""What both adapters remember of a request on its way to a pull.

    HELD --lost some of it--> ASKED --answer--> PLANNED --submitted--> LOADING --over--> SETTLED
      '----------- a lower tier has what the engine lacks --^                               ^
                                '--nothing to pull, too late, or not wanted----------------'

HELD: the engine, with the worker's lower tiers, has all of the prompt when the request arrives, and so the index is not
asked. While the request waits for its turn, these blocks may be reused; then the index is asked after all.

SETTLED is final: a request is pulled for at most once, so that a failed pull cannot repeat itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ghostcacher_connector.core.retention.base import BlockTraits
from ghostcacher_connector.core.sections import NO_SECTIONS, BlockSections
from ghostcacher_connector.core.types import BlockHash, PrefixHit
from ghostcacher_connector.pull.planner import PullPlan
from ghostcacher_connector.tiers.replicas import REPLICATED


class Phase(Enum):
    """See the module's docstring."""

    HELD = "held"
    ASKED = "asked"
    PLANNED = "planned"
    LOADING = "loading"
    SETTLED = "settled"


@dataclass(slots=True, kw_only=True)
class PullState(ABC):
    """One request; each adapter adds what it needs to know of its engine's."""

    phase: Phase = Phase.SETTLED
    """Where the request is on its way; those that nobody asks for are settled from the beginning."""
    pullable: int = 0
    """Blocks ``[0, pullable)`` of the prompt may be pulled.

    The block that holds the last token is not one of them: it is computed in any case, for its logits. Neither are
    those before it that the engine computes again at the end of every match (`PrefixMatcher.held_back`).
    """
    asked_at: float = 0.0
    """When the index was asked, on the matcher's clock."""
    hits: list[PrefixHit] = field(default_factory=list)
    """The index's answer."""
    ahead: tuple[str, ...] = ()
    """Workers that were about to pull the same before this one."""
    contended: bool = False
    """Whether copies of it are worth more than others: any of those ahead did not hold it yet when the pull was
    planned, so that more pull it at once than have it; or, on vLLM, its pulls take much of its holders' links
    (`Turns`).
    """
    plan: PullPlan | None = None
    """What is pulled from whom; None until it is decided."""
    decided_at: int = 0
    """How often the host tier had changed when the plan was made."""
    sections: BlockSections = NO_SECTIONS
    """What the blocks of its prompt belong to, as far as is known: a hint for what to keep."""
    tenant: bytes | None = None
    """A digest of what names its tenant; None when nothing does, and where the engine does not say."""
    kept_from: int | None = None
    """The first block of its prompt that this worker is to keep for the fleet's sake, if it is of a type that is; None:
    there is none, or the request was never looked up."""
    tools: bytes | None = field(init=False)
    """What names the tools of its prompt, among those of its tenant; None without tools, and if not known."""
    reported_as: str | None = None
    """The router's id of the request, until its prompt is reported as computed."""

    def __post_init__(self) -> None:
        tag = self.sections.tools
        self.tools = None if tag is None else tag + (self.tenant or b"")

    @property
    def trace_headers(self) -> Mapping[str, str] | None:
        """The headers that say which trace the request belongs to; None where the engine does not tell."""
        return None

    @property
    @abstractmethod
    def request_id(self) -> str:
        """The engine's own id of the request."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[BlockHash]:
        """The hashes of the request's full blocks."""

    def needs(self, index: int) -> bool:
        """Say whether the fleet would have too few copies of one of its blocks without this worker's."""
        kept = self.kept_from is not None and index >= self.kept_from
        return kept and self.sections.section_of(index) in REPLICATED

    @abstractmethod
    def traits_of(self, index: int, block_tokens: int, block_bytes: int) -> BlockTraits:
        """Describe one of its blocks to a tier, the same whether it is published or asked for.

        index: how many blocks of the request lie before it. block_tokens, block_bytes: of one block, on one rank.
        """
