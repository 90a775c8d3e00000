"""Who goes for whom when a tier is full."""

from __future__ import annotations

from typing import NamedTuple

from ghostcacher_connector.core.retention.base import EvictionReason, TierBlock


class Newcomer(NamedTuple):
    """A block that wants to be in the tier."""

    block: TierBlock
    worth: float
    retained: bool
    """Its request wants it kept."""
    needed: bool
    """The fleet would have too few copies without it."""

    def may_replace(self, victim: Victim) -> bool:
        """Whether the victim is not kept from those like this block."""
        return self.retained or not (victim.retained or (victim.needed and not self.needed))

    def outweighs(self, victim: Victim) -> bool:
        """Whether it is worth more than the victim, or something else decides."""
        other_type_gives_back = not victim.in_budget and victim.block.section is not self.block.section
        decided = other_type_gives_back or not victim.not_aged or (self.needed and not victim.needed)
        return decided or self.worth > victim.worth


class Victim(NamedTuple):
    """A leaf that may go. The first five are the order: the least goes."""

    retained: bool
    needed: bool
    """The fleet would have too few copies without it, and its type is within its budget."""
    not_aged: bool
    in_budget: bool
    worth: float
    block: TierBlock

    @property
    def reason(self) -> EvictionReason:
        if not self.not_aged:
            return EvictionReason.AGED
        return EvictionReason.CAPACITY if self.in_budget else EvictionReason.BUDGET
