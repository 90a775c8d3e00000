"""Settings of what the tiers under an engine's cache keep, and for how long."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from ghostcacher_connector.core.settings import CheckedSettings, Seconds
from ghostcacher_connector.core.types import SectionType

TTL_S_MAX = 30 * 24 * 3_600.0
QUOTA_GIB_MAX = 1_048_576.0
PRIORITY_MAX = 1_000.0
REPLICAS_MAX = 64

PolicyName = Literal["hit-density", "lru", "seed-score"]
Ttl = Annotated[Seconds, Meta(ge=1, le=TTL_S_MAX)]
Priority = Annotated[float, Meta(ge=0, le=PRIORITY_MAX)]
Share = Annotated[float, Meta(ge=0, le=1)]


class RetentionSettings(CheckedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the tiers of a worker keep. All types' times, priorities and budgets have names that end alike."""

    eviction_policy: Annotated[PolicyName, Meta(description="by what a full tier chooses the block that goes")] = (
        "hit-density"
    )
    tools_ttl_s: Annotated[
        Ttl | None, Meta(description="time after which tool definitions leave the tiers, in s; none: never")
    ] = None
    sys_ttl_s: Annotated[
        Ttl | None, Meta(description="time after which system prompts leave the tiers, in s; none: never")
    ] = None
    doc_ttl_s: Annotated[
        Ttl | None, Meta(description="time after which documents leave the tiers, in s; none: never")
    ] = 4 * 3_600.0
    session_ttl_s: Annotated[
        Ttl | None, Meta(description="time without use after which sessions leave the tiers, in s; none: never")
    ] = 3_600.0
    tools_priority: Annotated[Priority, Meta(description="how much more a hit on tool definitions is worth")] = 2.0
    sys_priority: Annotated[Priority, Meta(description="how much more a hit on a system prompt is worth")] = 2.0
    doc_priority: Annotated[Priority, Meta(description="how much more a hit on a document is worth")] = 1.0
    session_priority: Annotated[Priority, Meta(description="how much more a hit on a session is worth")] = 1.0
    tools_budget: Annotated[
        Share, Meta(description="share of a full tier beyond which tool definitions go first, from 0 to 1")
    ] = 0.25
    sys_budget: Annotated[
        Share, Meta(description="share of a full tier beyond which system prompts go first, from 0 to 1")
    ] = 0.25
    doc_budget: Annotated[
        Share, Meta(description="share of a full tier beyond which documents go first, from 0 to 1")
    ] = 0.75
    session_budget: Annotated[
        Share, Meta(description="share of a full tier beyond which sessions go first, from 0 to 1")
    ] = 0.75
    replicas_min: Annotated[
        int,
        Meta(
            ge=0,
            le=REPLICAS_MAX,
            description="copies of tool definitions and system prompts that the fleet's host tiers keep, each for an "
            "hour after its last use, a count; 0: they are kept as anything else",
        ),
    ] = 1
    retain_s_max: Annotated[
        Seconds, Meta(ge=0, le=TTL_S_MAX, description="longest time for which a request can retain its prefix, in s")
    ] = 24 * 3_600.0
    retained_share_max: Annotated[
        Share, Meta(description="share of a tier that requests can retain altogether, from 0 to 1")
    ] = 0.5
    quota_gib: Annotated[
        Annotated[float, Meta(ge=0, le=QUOTA_GIB_MAX)] | None,
        Meta(description="what one tenant can retain in a tier of a rank, in GiB; none: as much as all together"),
    ] = None

    def ttl_s(self, section: SectionType) -> float | None:
        """Return how long blocks of a type may stay; None for as long as there is room."""
        return {
            SectionType.TOOLS: self.tools_ttl_s,
            SectionType.SYS: self.sys_ttl_s,
            SectionType.DOC: self.doc_ttl_s,
            SectionType.SESSION: self.session_ttl_s,
            SectionType.USER: 0.0,
        }[section]

    def priority(self, section: SectionType) -> float:
        """Return how much more a hit on blocks of a type is worth than one on others."""
        return {
            SectionType.TOOLS: self.tools_priority,
            SectionType.SYS: self.sys_priority,
            SectionType.DOC: self.doc_priority,
            SectionType.SESSION: self.session_priority,
            SectionType.USER: 0.0,
        }[section]

    def budget(self, section: SectionType) -> float:
        """Return the share of a full tier that a type may hold while others want more."""
        return {
            SectionType.TOOLS: self.tools_budget,
            SectionType.SYS: self.sys_budget,
            SectionType.DOC: self.doc_budget,
            SectionType.SESSION: self.session_budget,
            SectionType.USER: 0.0,
        }[section]
