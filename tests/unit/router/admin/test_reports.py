"""What /gc/workers says of a worker's load."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from ghostcacher_connector.core.admin_api import TierLoad
from ghostcacher_connector.core.coordination.base import StampedLoad
from ghostcacher_router.admin.reports import _load
from tests.support.coordination_parts import make_load


def test_load_names_tiers_and_types() -> None:
    """As people know them; its age is that of the measurement."""
    worker: Any = SimpleNamespace(
        load=StampedLoad(0.0, replace(make_load(), hit_blocks=9, missed_blocks=(4, 0, 1))), load_measured_at=10.0
    )
    load = _load(worker, 12.5)
    assert load is not None
    assert (load.running, load.age_s) == (1, 2.5)
    types = {"tools": 0, "sys": 1, "doc": 2, "session": 0, "user": 0}
    assert (load.hit_blocks, load.missed_blocks) == (9, {"not_indexed": 4, "lookup_deadline": 1})
    assert load.tiers == (TierLoad("host", 3, 10, types, 5, 6, 7, 1),)
