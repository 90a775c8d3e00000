"""What requests want kept: until when, and how much of it within the tenants' quotas."""

from __future__ import annotations

from ghostcacher_connector.core.retention.alarms import Alarms
from ghostcacher_connector.core.retention.base import TierBlock


class Retained:
    """The retained blocks of a tier, and their bytes by tenant.

    A tenant beyond its quota is refused, and its earlier blocks stay retained. What is refused is a block like any
    other.
    """

    def __init__(self, total_bytes_max: float, tenant_bytes_max: float) -> None:
        self._total_bytes_max = total_bytes_max
        self._tenant_bytes_max = tenant_bytes_max
        self._by_tenant: dict[bytes | None, int] = {}
        self._ends = Alarms()
        self.total_bytes = 0
        self.refused_bytes = 0
        """Of all blocks so far that the quotas did not let be retained."""

    def __contains__(self, block: TierBlock) -> bool:
        return block in self._ends

    def retain(self, block: TierBlock, until: float) -> bool:
        """Retain a block until a time at least; return whether it is retained."""
        if block in self._ends:
            block.retained_until = max(block.retained_until, until)
            return True
        of_tenant = self._by_tenant.get(block.tenant, 0) + block.size_bytes
        if of_tenant > self._tenant_bytes_max or self.total_bytes + block.size_bytes > self._total_bytes_max:
            self.refused_bytes += block.size_bytes
            return False
        self._by_tenant[block.tenant] = of_tenant
        self.total_bytes += block.size_bytes
        block.retained_until = until
        self._ends.set(block, until)
        return True

    def release(self, block: TierBlock) -> None:
        """End a block's retention, if it has one."""
        if block in self._ends:
            self._ends.clear(block)
            self._forget(block)

    def next_end(self, now: float) -> TierBlock | None:
        """Return a block whose retention has ended since, and forget it; None if there is none."""
        while (block := self._ends.pop_due(now)) is not None:
            if block.retained_until <= now:
                self._forget(block)
                return block
            self._ends.set(block, block.retained_until)
        return None

    def _forget(self, block: TierBlock) -> None:
        block.retained_until = float("-inf")
        self.total_bytes -= block.size_bytes
        of_tenant = self._by_tenant[block.tenant] - block.size_bytes
        if of_tenant:
            self._by_tenant[block.tenant] = of_tenant
        else:
            del self._by_tenant[block.tenant]

    def check_invariants(self) -> None:
        assert self.total_bytes == sum(self._by_tenant.values())
        assert self.total_bytes <= self._total_bytes_max
        assert all(0 < size <= self._tenant_bytes_max for size in self._by_tenant.values())
