"""All that one rank runs beside its engine: memory registration, transports, pulls, its view of the fleet.

    engine slots --copier--> host slots --puller, as from a peer--> engine slots
    slot table, slots --read by--> peers     peers' records --live workers--> puller --writes--> this rank's slots
                   '--read by--> relay --TCP--> peers that share neither memory nor RDMA

Knows no engine. Every rank has its own connection to the index: only the rank itself can measure its links, and an idle
engine carries no messages between its scheduler and its ranks.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.addresses import port_of_rank
from ghostcacher_connector.core.errors import PeerUnreachable, TransferError
from ghostcacher_connector.core.index.base import BlockIndex, WorkerRef
from ghostcacher_connector.core.open import open_index
from ghostcacher_connector.core.settings import Listen, parse_listen
from ghostcacher_connector.core.types import RankEndpoint, SlotMemory, WorkerRecord
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.metrics.catalog import COPY_RESULTS
from ghostcacher_connector.slots import Slots, SlotTable
from ghostcacher_connector.transfer.base import Probe, Transport
from ghostcacher_connector.transfer.copier import Copier, CopierStats
from ghostcacher_connector.transfer.layout import by_memory, rows_of
from ghostcacher_connector.transfer.local import LocalTransport
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.puller import Puller
from ghostcacher_connector.transfer.relay.process import RelayProcess
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from ghostcacher_connector.transfer.shares import Share
from ghostcacher_connector.worker.host_memory import HostMemory
from ghostcacher_connector.worker.host_objects import HostObjects
from ghostcacher_connector.worker.link_probe import PROBE_TIMEOUT_S, ProbeResponder, SelfCheckReport
from ghostcacher_connector.worker.live_workers import LiveWorkers

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 2.0
SELF_CHECK_TIMEOUT_S = 5.0
PROBE_SLOTS = 4
"""Slots read to time a link: enough bytes for a rate, few enough not to disturb."""


class RankRuntime:
    """Owner of a rank's transports and threads; see the module's docstring."""

    def __init__(
        self,
        settings: Settings,
        memory: SlotMemory,
        table: SlotTable,
        recorder: Recorder,
        *,
        worker: str,
        share: Share,
        namespace: str,
        scratch_slot: int,
        port_offset: int = 0,
        host: HostMemory | None = None,
    ) -> None:
        """Register the rank's memory and open its transports.

        table: of the engine's slots and the host's. host: the host tier's memory, if there is one; closed by `stop`.
        port_offset: how far above `relay_listen` this rank's own port is, different for each rank of one deployment.
        share: the part of each block that this rank has.
        scratch_slot: a slot that the engine never reads; the self-check writes to it.
        Raises ConfigError and TransferError: at start, and only then.
        """
        self._settings = settings
        self._memory = memory
        self._host = host
        self._recorder = recorder
        self._table = table
        self._worker = worker
        self._rank = rank = share.rank
        self._share = share
        self._scratch_slot = scratch_slot
        self._port_offset = port_offset
        self._self_check: SelfCheckReport | None = None
        self._responder: ProbeResponder | None = None
        self._namespace = namespace
        self._overdue = 0
        self._quarantined = 0
        self._copies_waiting = 0
        self._copied = CopierStats()
        # The agent is needed even where only the relay pulls: it is what peers, and the relay, read this rank by.
        memories = (memory,) if host is None else (memory, host.slots)
        self._nixl = NixlTransport(
            memories,
            table,
            name=f"{worker}-{rank}",
            ucx_tls=settings.ucx_tls,
            threads=settings.pull_threads,
        )
        self._relay = self._make_relay()
        address = self._relay.start() if self._relay is not None else None
        self.endpoint: RankEndpoint = self._nixl.endpoint(rank=rank, relay=address)
        self.copier: Copier | None = None
        """Fills host slots; None without a host tier."""
        self.objects: HostObjects | None = None
        """Blocks that outlive the engine; None until `open_objects`."""
        local: list[Transport] = []
        if host is not None:
            self.copier = Copier((memory, host.slots), table)
            local.append(LocalTransport((memory, host.slots), table, agent_name=self.endpoint.agent_name))
        self.puller = Puller(
            [*local, *self._transports()],
            memory,
            namespace=namespace,
            share=share,
            pull_threads=settings.pull_threads,
            loads=host is not None,
        )
        self._know_own()
        self.index: BlockIndex = open_index(
            settings.redis_url, timeout_s=settings.redis_timeout_s, key=(settings.index_key or "").encode()
        )
        self._live_workers = LiveWorkers(
            self.index, namespace, on_change=self._fleet_changed, lease_ttl_s=settings.lease_ttl_s
        )

    def start(self) -> None:
        """Prove that a pull works, then look for peers. Raises TransferError when it does not."""
        if self._settings.self_check:
            self._run_self_check()
        self._live_workers.start()

    def open_objects(self, kv_dtype: str) -> None:
        """Begin to use the object tier, where the settings name one. Raises ConfigError.

        kv_dtype: the data type of the KV cache, such as "bfloat16".
        """
        url = self._settings.object_url
        if url is None or self._host is None or self.copier is None:
            return
        self.objects = HostObjects(
            url,
            self._settings,
            self._host.slots,
            self._table,
            self.copier,
            self._recorder,
            rank=self._share.number,
            namespace=self._namespace,
            kv_dtype=kv_dtype,
        )

    def move(self, namespace: str) -> None:
        """Become another incarnation, in another namespace: peers refuse all that was published, from now on.

        What is being pulled is of the namespace that is left: the caller must not use it. Connections to peers are
        taken down where no READ is in flight, and made anew to those that are met again.
        """
        self._namespace = namespace
        self.endpoint = replace(self.endpoint, incarnation=self._table.renew_incarnation())
        if self.objects is not None:
            self.objects.move(namespace)
        self._know_own()
        # In this order: who is met there is handed to the puller once, and it must take them by then.
        self.puller.peers.move(namespace)
        self._live_workers.move(namespace)

    def stop(self) -> None:
        """End threads, transports and the relay. Idempotent; bounded in time."""
        # In this order: the first one's thread starts the other.
        self._live_workers.stop(STOP_TIMEOUT_S)
        if self._responder is not None:
            self._responder.stop(STOP_TIMEOUT_S)
        if self.objects is not None:
            self.objects.close()
        copied = self.copier is None or self.copier.close()
        # Closes its transports, unless a READ is still in flight: what it writes to must then stay registered.
        pulled = self.puller.close()
        if "nixl" not in self._settings.transports:
            self._nixl.close()
        if self._relay is not None:
            self._relay.close()
        if self._host is not None and copied and pulled:
            self._host.close()
        self.index.close()

    def candidates(self) -> list[WorkerRef]:
        """Return the other live workers, to be asked for blocks."""
        return self._live_workers.candidates(exclude_worker=self._worker)

    def round_trips(self) -> dict[str, float]:
        """Return the measured round trip to each peer, in seconds."""
        return {worker: link.rtt_s for worker, link in self.puller.links().items() if link.rtt_s is not None}

    def record_metrics(self) -> None:
        """Record what has changed since the last call; cheap enough for every step."""
        overdue, quarantined = self._nixl.overdue_count, self._nixl.quarantined_count
        if overdue != self._overdue:
            self._recorder.inc("gc_stuck_reads_total", overdue - self._overdue, rank=str(self._rank))
            self._overdue = overdue
        if quarantined != self._quarantined:
            self._recorder.set("gc_quarantined_reads", quarantined, rank=str(self._rank))
            self._quarantined = quarantined
        if self.copier is not None:
            self._record_copies(self.copier)

    def _record_copies(self, copier: Copier) -> None:
        if copier.queue_length != self._copies_waiting:
            self._copies_waiting = copier.queue_length
            self._recorder.set("gc_tier_copy_queue", self._copies_waiting, rank=str(self._rank))
        now, before = copier.stats, self._copied
        if now == before:
            return
        self._copied = now
        for result in COPY_RESULTS:
            self._recorder.inc(
                "gc_tier_copied_blocks_total", getattr(now, result) - getattr(before, result), result=result
            )
        self._recorder.inc("gc_tier_copied_bytes_total", now.bytes - before.bytes)
        self._recorder.inc("gc_tier_copy_seconds_total", now.seconds - before.seconds)

    def _know_own(self) -> None:
        if self._host is not None:
            self.puller.peers.know_own(self._worker, self.endpoint)

    def _transports(self) -> list[Transport]:
        """Return the ways to read peers, in the order of the setting."""
        made: dict[str, Transport] = {"nixl": self._nixl}
        if "relay" in self._settings.transports:
            made["relay"] = RelayTransport(self._memory, token=self._settings.relay_token)
        return [made[name] for name in self._settings.transports]

    def _make_relay(self) -> RelayProcess | None:
        if self._settings.relay_listen is None:
            return None
        host, port = parse_listen(self._settings.relay_listen, "relay_listen")
        own = Listen(host, port_of_rank(port, self._port_offset, "relay_listen"))
        return RelayProcess(
            self._nixl.endpoint(rank=self._rank),
            listen=str(own),
            token=self._settings.relay_token,
            ucx_tls=self._settings.ucx_tls,
            log_format=self._settings.log_format,
        )

    def _fleet_changed(self, records: Sequence[WorkerRecord]) -> None:
        """Take the new records of live workers; called on the thread of `LiveWorkers`."""
        self.puller.update_peers(record for record in records if record.worker != self._worker)
        own = next((record for record in records if self._is_own(record)), None)
        if own is None:
            return
        if self._responder is None:
            self._responder = ProbeResponder(
                self.index, own, self._probe_peer, rank=self._rank, self_check=lambda: self._self_check
            )
            self._responder.start()
        else:
            self._responder.move(own)

    def _is_own(self, record: WorkerRecord) -> bool:
        """Return whether a record is of this incarnation of this worker."""
        ranks = record.ranks
        return self._rank < len(ranks) and ranks[self._rank].incarnation == self.endpoint.incarnation

    def _probe_peer(self, peer: WorkerRecord) -> Probe:
        sources = self.puller.peers.counterparts(peer)
        if not sources:
            raise PeerUnreachable(f"{peer.worker} has no rank with the share of rank {self._rank}")
        if self._live_workers.get(peer.worker) != peer:
            self._live_workers.refresh()  # it has joined, or come back, since the last look
        count = min(PROBE_SLOTS, sources[0].endpoint.slot_count)
        return self.puller.probe(peer.worker, np.arange(count, dtype=np.int64), timeout_s=PROBE_TIMEOUT_S)

    def _run_self_check(self) -> None:
        """Read a slot of each of this rank's memories the way a peer would and compare its bytes. Raises TransferError.

        On a GPU none of the engine's: CUDA does not open for a process the memory that is its own.
        """
        on_host = [self._scratch_slot] if self._memory.memory == "DRAM" else []
        if self._host is not None:
            on_host.append(self._memory.slot_count)  # the first host slot: nothing is in it yet
        slots = np.asarray(on_host, dtype=np.int64)
        expected = self._write_pattern(slots)
        seen = self._nixl.probe(self.endpoint, slots, timeout_s=SELF_CHECK_TIMEOUT_S)
        error = ""
        if not seen.current:
            error = "the seal is that of another incarnation"
        elif seen.data != expected:
            error = f"slots {on_host}: the bytes read are not those that were written"
        self._self_check = SelfCheckReport(ok=not error, transport=seen.transport, error=error, at=time.time())
        self._recorder.set("gc_self_check_ok", 0 if error else 1, rank=str(self._rank))
        if error:
            raise TransferError(f"self-check of {self._worker} rank {self._rank} failed: {error}")
        what = f"slots {on_host}" if on_host else "the seal"
        logger.info("self-check: read %s over %s in %.0f us", what, seen.transport, (seen.rtt_s + seen.data_s) * 1e6)

    def _write_pattern(self, slots: Slots) -> bytes:
        """Fill slots in host memory with random bytes; return these, segment after segment."""
        rows = [np.frombuffer(secrets.token_bytes(len(slots) * size), np.uint8) for size in self._memory.slot_bytes]
        for memory, places, within in by_memory(self.endpoint.memories, slots):
            for segment, part in zip(memory.segments, rows, strict=True):
                rows_of(segment, memory.slot_count)[within] = part.reshape(len(slots), -1)[places]
        return b"".join(part.tobytes() for part in rows)
