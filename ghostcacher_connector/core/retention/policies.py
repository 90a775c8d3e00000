"""Eviction policies by name."""

from __future__ import annotations

from ghostcacher_connector.core.retention.base import EvictionPolicy
from ghostcacher_connector.core.retention.lru import Lru
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings


def make_policy(settings: RetentionSettings) -> EvictionPolicy:
    """Return a new policy of the kind that the settings name, for one tier."""
    assert settings.eviction_policy == "lru"
    return Lru()
