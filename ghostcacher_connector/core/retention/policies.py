"""Eviction policies by name."""

from __future__ import annotations

from ghostcacher_connector.core.retention.base import EvictionPolicy
from ghostcacher_connector.core.retention.hit_density import HitDensity
from ghostcacher_connector.core.retention.lru import Lru
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.seed_score import SeedScore
from ghostcacher_connector.core.types import SectionType


def make_policy(settings: RetentionSettings, capacity_bytes: int) -> EvictionPolicy:
    """Return a new policy of the kind that the settings name, for one tier."""
    priorities = {section: settings.priority(section) for section in SectionType}
    match settings.eviction_policy:
        case "hit-density":
            return HitDensity(priorities, capacity_bytes)
        case "seed-score":
            return SeedScore(priorities)
        case "lru":
            return Lru()
