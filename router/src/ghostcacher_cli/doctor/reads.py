"""Reads made by the doctor itself, in a process of their own: a crash in NIXL or UCX is then a finding, not the end.

Run as ``python -m ghostcacher_cli.doctor.reads``. Standard input: a packed ReadsJob (the token never shows in
arguments or environment). Standard output: one line for each result, marked, as libraries print there, too.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import msgspec
import numpy as np

from ghostcacher_connector.core.errors import ConfigError, GhostCacherError
from ghostcacher_connector.core.index.link_report import LinkReport
from ghostcacher_connector.core.types import RankEndpoint, SlotMemory, Tier
from ghostcacher_connector.slots import SlotTable
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, Transport
from ghostcacher_connector.transfer.cuda import CudaDevice, has_driver
from ghostcacher_connector.transfer.layout import endpoint_fault, packed_segments
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from ghostcacher_connector.worker.link_probe import link_report

MARK = b"@gc "
LOOPBACK = "loopback"
LOOPBACK_SLOTS = 64
LOOPBACK_SLOT_BYTES = 64 << 10
START_S = 30.0
"""Importing NIXL and starting agents takes seconds on a cold machine."""
SLOT_BYTES_MAX = 64 << 20
SLOTS_READ = 4
EXIT_GRACE_S = 5.0

_encode = msgspec.json.Encoder().encode


class Target(msgspec.Struct, frozen=True):
    """One rank to read from."""

    name: str
    endpoint: RankEndpoint


class ReadsJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to read. timeout_s: of one read."""

    targets: tuple[Target, ...]
    relay_token: str | None
    timeout_s: float

    def __repr__(self) -> str:
        return f"ReadsJob({len(self.targets)} targets)"


class ReadResult(msgspec.Struct, frozen=True):
    """How one read went. name: LOOPBACK, or that of the target."""

    name: str
    link: LinkReport


def run_reads(job: ReadsJob) -> tuple[list[ReadResult], str]:
    """Carry out a job in a process of its own; return its results and what went wrong with it ("" for nothing)."""
    bound_s = START_S + job.timeout_s * (len(job.targets) + 1)
    command = [sys.executable, "-m", "ghostcacher_cli.doctor.reads"]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, input=msgspec.msgpack.encode(job), capture_output=True, timeout=bound_s, check=False
        )
    except subprocess.TimeoutExpired as exc:
        return _results(exc.stdout or b""), f"the reading process did not end within {bound_s:.0f} s"
    wrong = ""
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        wrong = f"the reading process ended with status {done.returncode}: {' '.join(last)[:500]}"
    return _results(done.stdout), wrong


def _results(output: bytes) -> list[ReadResult]:
    results = []
    for line in output.splitlines():
        if line.startswith(MARK):
            with suppress(msgspec.DecodeError):
                results.append(msgspec.json.decode(line.removeprefix(MARK), type=ReadResult))
    return results


def read_all(job: ReadsJob) -> Iterator[ReadResult]:
    """Yield the result of the loopback read, then of each target."""
    yield ReadResult(LOOPBACK, loopback(job.timeout_s))
    largest = max((target.endpoint.bytes_per_slot for target in job.targets), default=0)
    slot_bytes = -(-min(max(largest, LOOPBACK_SLOT_BYTES), SLOT_BYTES_MAX) // 8) * 8
    ways = _Ways(slot_bytes, job.relay_token)
    for target in job.targets:
        yield ReadResult(target.name, _read(ways, target.endpoint, job.timeout_s))
    ways.close()


class _Ways:
    """The transports that the doctor reads by. NIXL needs one for each kind of memory."""

    def __init__(self, slot_bytes: int, relay_token: str | None) -> None:
        self._slot_bytes = slot_bytes
        self._slot, _, self._keep = _memory(1, slot_bytes)
        self._nixl: dict[int | None, NixlTransport | None] = {}
        self._relay = None
        self._broken: dict[int | None, str] = {}
        with suppress(ConfigError):
            self._relay = RelayTransport(self._slot, token=relay_token)

    def to(self, peer: RankEndpoint) -> list[Transport]:
        """Return what may lead to a peer, the best one first."""
        place = _place_of(peer)
        if place not in self._nixl:
            self._nixl[place] = self._open(place)
        return [way for way in (self._nixl[place], self._relay) if way is not None]

    def why_not(self, peer: RankEndpoint) -> str:
        """Say what keeps NIXL from reading such a peer, if it did not even start."""
        return self._broken.get(_place_of(peer), "")

    def close(self) -> None:
        for way in (*self._nixl.values(), self._relay):
            if way is not None:
                way.close()

    def _open(self, device: int | None) -> NixlTransport | None:
        try:
            return NixlTransport((self._landing(device),), SlotTable(1), name="doctor", threads=1)
        except GhostCacherError as exc:
            self._broken[device] = str(exc)
            return None

    def _landing(self, device: int | None) -> SlotMemory:
        if device is None:
            return self._slot
        address = CudaDevice(device).allocate(self._slot_bytes)
        return SlotMemory(Tier.DEVICE, 1, packed_segments(address, [self._slot_bytes], 1), "VRAM", device)


def _place_of(peer: RankEndpoint) -> int | None:
    """Return the device here that reads such a peer, None for host memory. Any does: numbers are each process's own."""
    return 0 if peer.memories[0].memory == "VRAM" and has_driver() else None


def loopback(timeout_s: float) -> LinkReport:
    """Pull a megabyte or so between two agents of this process, and compare every byte. Proves that NIXL works here."""
    at = time.time()
    try:
        owner_memory, owner_table, owner_data = _memory(LOOPBACK_SLOTS, LOOPBACK_SLOT_BYTES)
        reader_memory, reader_table, reader_data = _memory(LOOPBACK_SLOTS, LOOPBACK_SLOT_BYTES)
        owner_data[:] = np.frombuffer(secrets.token_bytes(owner_data.nbytes), dtype=np.uint8)
        owner = NixlTransport((owner_memory,), owner_table, name="doctor-owner", threads=1)
        reader = NixlTransport((reader_memory,), reader_table, name="doctor-reader", threads=1)
        slots = np.arange(LOOPBACK_SLOTS, dtype=np.int64)
        generations = np.ones(LOOPBACK_SLOTS, dtype=np.uint64)
        owner_table.bump(slots, generations)
        request = PullRequest(owner.endpoint(rank=0), slots, slots, generations, time.monotonic() + timeout_s)
        reader.pull(request)  # connects and touches the memory: what is timed is the second pull
        result = reader.pull(request)
        same = bool((owner_data == reader_data).all())
        reader.close()
        owner.close()
    except GhostCacherError as exc:
        return _broken(f"{type(exc).__name__}: {exc}", at)
    if result.outcome is not PullOutcome.DONE or not same:
        return _broken(result.detail or f"pull ended {result.outcome.value}, bytes {'equal' if same else 'differ'}", at)
    rate = result.bytes / result.seconds
    return LinkReport(ok=True, transport=result.transport, bytes_per_s=rate, rtt_us=None, error="", at=at)


def _read(ways: _Ways, peer: RankEndpoint, timeout_s: float) -> LinkReport:
    """Read a peer's seal and, where they fit, a few slots, by the first transport that reaches it."""
    if fault := endpoint_fault(peer):
        return _broken(fault, time.time())
    for way in ways.to(peer):
        if way.reaches(peer):
            fit = min(SLOTS_READ, SLOT_BYTES_MAX // max(1, peer.bytes_per_slot), peer.slot_count)
            return link_report(partial(way.probe, peer, np.arange(fit), timeout_s=timeout_s), at=time.time())
    tried = "shared memory or RDMA" + (f", nor its relay {peer.relay}" if peer.relay else ", and it has no relay")
    error = f"neither {tried} leads from here to it" if peer.relay else f"no {tried}"
    why = ways.why_not(peer)
    return _broken(f"{error}; NIXL did not start: {why}" if why else error, time.time())


def _memory(
    slot_count: int, slot_bytes: int
) -> tuple[SlotMemory, SlotTable, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    data = np.zeros(slot_count * slot_bytes, dtype=np.uint8)
    segments = packed_segments(int(data.ctypes.data), [slot_bytes], slot_count)
    return SlotMemory(Tier.DEVICE, slot_count, segments), SlotTable(slot_count), data


def _broken(error: str, at: float) -> LinkReport:
    return LinkReport(ok=False, transport=None, bytes_per_s=None, rtt_us=None, error=error, at=at)


def main() -> None:
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=ReadsJob)
    for result in read_all(job):
        sys.stdout.buffer.write(MARK + _encode(result) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
