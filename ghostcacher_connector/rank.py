"""All that one rank runs beside its engine: memory registration, transports, pulls, its view of the fleet.

    slot table --read by--> peers          peers' records --directory--> puller --writes--> this rank's slots

Knows no engine. Every rank has its own connection to the index, since only the rank itself can measure its links, and
since an idle engine carries no messages between its scheduler and its ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ghostcacher_connector.config import Settings
from ghostcacher_connector.errors import TransferError
from ghostcacher_connector.index.directory import Directory
from ghostcacher_connector.index.open import open_index
from ghostcacher_connector.slots import SlotTable
from ghostcacher_connector.transfer.base import Probe, Transport
from ghostcacher_connector.transfer.layout import RankMemory
from ghostcacher_connector.transfer.nixl import NixlTransport
from ghostcacher_connector.transfer.puller import Puller
from ghostcacher_connector.types import RankEndpoint, WorkerRecord

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 2.0
SELF_CHECK_TIMEOUT_S = 5.0


class RankRuntime:
    """Owner of a rank's transports and threads; see the module's docstring."""

    def __init__(
        self,
        settings: Settings,
        memory: RankMemory,
        table: SlotTable,
        *,
        worker: str,
        rank: int,
        namespace: str,
    ) -> None:
        """Register the rank's memory and open its transports. Raises ConfigError and TransferError, at start only."""
        self._settings = settings
        self._memory = memory
        self._worker = worker
        self._nixl = NixlTransport(
            memory,
            table,
            name=f"{worker}-{rank}",
            allow_ucx_tcp=settings.allow_ucx_tcp,
            ucx_tls=settings.ucx_tls,
            staging_mib=settings.staging_mib,
            threads=settings.pull_threads,
        )
        self.endpoint: RankEndpoint = self._nixl.endpoint(rank=rank)
        transports: list[Transport] = [self._nixl]
        self.puller = Puller(
            transports, memory, namespace=namespace, rank=rank, pull_threads=settings.pull_threads
        )
        self._index = open_index(settings.redis_url, timeout_s=settings.redis_timeout_s)
        self.directory = Directory(
            self._index, namespace, on_change=self._peers_changed, lease_ttl_s=settings.lease_ttl_s
        )

    def start(self) -> None:
        """Prove that a pull works, then look for peers."""
        if self._settings.self_check:
            self._check_itself()
        self.directory.start()

    def stop(self) -> None:
        """End threads and transports. Idempotent; bounded in time."""
        self.directory.stop(STOP_TIMEOUT_S)
        self.puller.close()
        self._index.close()

    def links(self) -> dict[str, tuple[float, float]]:
        """Return the measured way to each peer: (bytes/s, round trip in s)."""
        return {
            worker: (link.bytes_per_s or 0.0, link.rtt_s or 0.0)
            for worker, link in self.puller.links().items()
            if link.rtt_s is not None
        }

    def _peers_changed(self, records: Sequence[WorkerRecord]) -> None:
        self.puller.update_peers(record for record in records if record.worker != self._worker)

    def _check_itself(self) -> None:
        """Read this rank's own slots as a peer would and compare them. Raises TransferError."""
        slots = np.arange(min(2, self._memory.slot_count), dtype=np.int64)
        probe: Probe = self._nixl.probe(self.endpoint, slots, timeout_s=SELF_CHECK_TIMEOUT_S)
        if not probe.current:
            raise TransferError(f"self-check of {self._worker}: expected its own incarnation in the seal, found another")
        rate = len(probe.data) / probe.data_s if probe.data_s > 0 else 0.0
        logger.info("self-check: read own slots over %s at %.2f GB/s", probe.transport, rate / 1e9)
