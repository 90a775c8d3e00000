"""The Redis key schema: every key, every value format, and nothing else. Versioned as a whole.

    gc2:namespaces                        zset   namespace -> when it was last used (server time, s)
    gc2:{<ns>}:workers                    zset   worker name -> when it last renewed (server time, s)
    gc2:{<ns>}:worker:<name>              string RECORD_MAGIC, incarnation, digest, msgpack WorkerRecord; TTL = lease
    gc2:{<ns>}:owner:<worker>             string token of the process whose record that is; TTL = lease
    gc2:{<ns>}:lease:<worker>             string stamp of the record's lease, where there is a key; TTL = lease
    gc2:{<ns>}:report:<worker>:<report>   hash   small values of a worker, each stamped; TTL = the report's
    gc2:{<ns>}:readers:<block hex>        zset   stamped worker -> when it began to pull (server time, ms); TTL
    gc2:{<ns>:<p>}:blocks:<incarnation>   hash   block hash -> packed Location, digest; TTL = lease

    gc2:{router}:load:<ns>:<worker>       string incarnation, server time (16 digits, us), stamped LoadReport; TTL
    gc2:{router}:news                     stream d = stamped WorkerEvents: what workers publish for routers
    gc2:{router}:texts                    stream d = stamped PrefixMapUpdate or Flush, from routers
    gc2:{router}:flushes                  stream d = stamped FlushOrder, from routers to workers
    gc2:{router}:flushed:<hex>:<worker>   string stamped FlushReport: what a worker answers; TTL
    gc2:{router}:routers                  zset   stamped router -> until when it counts as alive (server time, ms)
    gc2:{router}:drain:<worker>           string stamped DrainOrder; TTL = the order's
    gc2:{router}:seed                     string 16 hex digits: of the hashes of text, where there is no key
    gc2:{router}:tokens                   string the last fencing token
    gc2:{router}:lock:<hex>               hash   t token, r router, w worker, a ready at (server time, s), s stamp; TTL
    gc2:{router}:session:<hex>            string stamped worker; TTL = session's, or that of a stored object

The braces are hash tags: what one script touches lies on one shard, and the partitions ``p`` of a namespace spread
over shards. The entries of a worker are one hash a partition, so that a lease is one TTL: a worker that dies takes its
entries along, and a worker that restarts begins new keys. Nothing here ever needs a scan of the key space.

What routers share is on one shard: one script takes the load and the events of a worker and says whether a router
listens, and one read waits for both streams. All of it is small.

The digests bind a value to its place: an entry to its block and its worker's life, a record to whoever may speak for a
worker. A generation proves that a slot was not reused since its entry was made, but not that the entry was made for the
block under which it is found; the digest does. Without a key (``b""``) a digest is a checksum against faults, against a
bad restore or a script gone wrong. With the fleet's secret as the key, nobody who can write to Redis, but does not know
the secret, can point a reader at other memory. What is small, and believed for a time, is *stamped* with the key, which
binds it to its place and its time (stamps.py); without a key it lies there as it is.

A change of any format is a new SCHEMA_VERSION, which is part of every key: two versions never read each other.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from ghostcacher_connector.core.errors import ConfigError, DigestMismatch, ProtocolError
from ghostcacher_connector.core.types import (
    INCARNATION_BYTES,
    BlockHash,
    Location,
    RankEndpoint,
    Tier,
    WorkerRecord,
)

SCHEMA_VERSION = 2
PREFIX = f"gc{SCHEMA_VERSION}"

PARTITIONS_SINGLE = 1
PARTITIONS_CLUSTER = 16

RECORD_MAGIC = b"gcw1"
RECORD_DIGEST_BYTES = 16
RECORD_HEADER_BYTES = len(RECORD_MAGIC) + INCARNATION_BYTES + RECORD_DIGEST_BYTES
RECORD_BYTES_MAX = 8 << 20
"""Agent metadata is a few KiB a rank; more than this is not a record of ours."""

_LOCATION = struct.Struct("<BIQ")
LOCATION_BYTES = _LOCATION.size
ENTRY_DIGEST_BYTES = 8
"""Without the key a forgery takes some 2**63 tries, each a write to Redis and a lookup of a reader's own making."""
ENTRY_BYTES = LOCATION_BYTES + ENTRY_DIGEST_BYTES
_ENTRY = struct.Struct(f"<{LOCATION_BYTES}s{ENTRY_DIGEST_BYTES}s")
TIER_MAX = int(max(Tier))
SLOT_COUNT_MAX = 1 << 32
_U64_MAX = (1 << 64) - 1

_TIERS = {int(tier): tier for tier in Tier}
NAMESPACE_CHARS_MAX, WORKER_CHARS_MAX = 128, 255
WORKER_BYTES_MAX = 4 * WORKER_CHARS_MAX
_NAMESPACE = re.compile(r"[0-9A-Za-z._-]{1,128}")
_WORKER = re.compile(r"[^\x00-\x20\x7f]{1,255}")
_REPORT = re.compile(r"[0-9A-Za-z._-]{1,64}")

_new_location: Callable[[tuple[Tier, int, int]], Location] = partial(tuple.__new__, Location)
_encode_record = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(WorkerRecord).decode


def namespaces_key() -> str:
    return f"{PREFIX}:namespaces"


def workers_key(namespace: str) -> str:
    return f"{PREFIX}:{{{check_namespace(namespace)}}}:workers"


def worker_key_prefix(namespace: str) -> str:
    """Return what, followed by a worker's name, is the key of its record."""
    return f"{PREFIX}:{{{check_namespace(namespace)}}}:worker:"


def worker_key(namespace: str, worker: str) -> str:
    return worker_key_prefix(namespace) + check_worker(worker)


def owner_key(namespace: str, worker: str) -> str:
    return f"{PREFIX}:{{{check_namespace(namespace)}}}:owner:{check_worker(worker)}"


def lease_key_prefix(namespace: str) -> str:
    """Return what, followed by a worker's name, is the key of its lease's stamp."""
    return f"{PREFIX}:{{{check_namespace(namespace)}}}:lease:"


def lease_place(record: WorkerRecord) -> tuple[str | bytes, ...]:
    """Return what the stamp of a worker's lease is made for (core/stamps.py)."""
    return "lease", record.namespace, record.worker, record.incarnation


def report_key(namespace: str, worker: str, report: str) -> str:
    """Return the key of a report. A report's name has no colon, so that no two names make one key."""
    if not _REPORT.fullmatch(report):
        raise ConfigError(f"report name: expected 1 to 64 of [0-9A-Za-z._-], got {report!r}")
    return f"{PREFIX}:{{{check_namespace(namespace)}}}:report:{check_worker(worker)}:{report}"


def readers_key(namespace: str, block: BlockHash) -> str:
    """Return the key of those that pull a prefix. block: its last one."""
    return f"{PREFIX}:{{{check_namespace(namespace)}}}:readers:{block.hex()}"


def readers_place(namespace: str, block: BlockHash) -> tuple[str | bytes, ...]:
    """Return what the stamp of one of them is made for (core/stamps.py)."""
    return "reader", namespace, block


def blocks_key(namespace: str, partition: int, incarnation: bytes) -> str:
    return f"{PREFIX}:{{{check_namespace(namespace)}:{partition}}}:blocks:{incarnation.hex()}"


def router_key(name: str) -> str:
    """Return the key of what all routers share. name: "news", "texts", "flushes", "routers", "seed" or
    "tokens"."""
    return f"{PREFIX}:{{router}}:{name}"


def load_key(namespace: str, worker: str) -> str:
    """Return the key of a worker's load. A namespace has no colon, so that no two pairs make one key."""
    return router_key(f"load:{check_namespace(namespace)}:{check_worker(worker)}")


def drain_key(worker: str) -> str:
    return router_key(f"drain:{check_worker(worker)}")


def flush_report_key(order: bytes, worker: str) -> str:
    return router_key(f"flushed:{order.hex()}:{check_worker(worker)}")


def lock_key(key: bytes) -> str:
    return router_key(f"lock:{key.hex()}")


def session_key(key: bytes) -> str:
    return router_key(f"session:{key.hex()}")


def is_namespace(namespace: str) -> bool:
    return _NAMESPACE.fullmatch(namespace) is not None


def check_namespace(namespace: str) -> str:
    """Return the namespace; raise ConfigError when it could break out of its hash tag."""
    if not is_namespace(namespace):
        raise ConfigError(f"namespace: expected 1 to 128 of [0-9A-Za-z._-], got {namespace!r}")
    return namespace


def is_worker(worker: str) -> bool:
    return _WORKER.fullmatch(worker) is not None


def check_worker(worker: str) -> str:
    """Return the worker's name; raise ConfigError when it is empty, too long or has blanks or control characters."""
    if not is_worker(worker):
        raise ConfigError(f"worker name: expected 1 to 255 characters without blanks, got {worker!r}")
    return worker


def partition_of(root: BlockHash, partitions: int) -> int:
    """Return the partition of a chain: all blocks with one root lie together."""
    return root[0] % partitions


def pack_location(location: Location) -> bytes:
    """Return the head of an entry's value: tier u8, slot u32, generation u64, little endian, LOCATION_BYTES in all."""
    return _LOCATION.pack(*location)


def unpack_locations(packed: bytes) -> tuple[Location, ...]:
    """Return the locations in a run of packed ones; raise ProtocolError when the bytes are anything else.

    The engine's interpreter runs this, for thousands of locations a request: no Python code runs per location.
    """
    if len(packed) % LOCATION_BYTES:
        raise ProtocolError(f"locations: expected a multiple of {LOCATION_BYTES} bytes, found {len(packed)}")
    tiers = set(packed[::LOCATION_BYTES])
    if not tiers <= _TIERS.keys():
        raise ProtocolError(f"locations: expected tiers up to {TIER_MAX}, found {max(tiers)}")
    if not packed:
        return ()
    numbers, slots, generations = zip(*_LOCATION.iter_unpack(packed), strict=True)
    return tuple(map(_new_location, zip(map(_TIERS.__getitem__, numbers), slots, generations, strict=True)))


class Binding:
    """Binds entries to one worker incarnation: packs a location for one block, and unpacks it for that block alone.

    The digest of an entry covers key, namespace, incarnation, block hash and location. Every field but the block hash
    has a fixed or a given width, so that no two sets of fields have the same bytes.
    """

    def __init__(self, namespace: str, incarnation: bytes, key: bytes = b"") -> None:
        self._state = keyed_digest("entry", ENTRY_DIGEST_BYTES, key)
        for field in (check_namespace(namespace).encode(), incarnation):
            self._state.update(len(field).to_bytes(4, "little") + field)

    def pack(self, block: BlockHash, location: Location) -> bytes:
        """Return the value of a block's entry: packed location and digest, ENTRY_BYTES in all."""
        packed = pack_location(location)
        state = self._state.copy()
        state.update(block + packed)
        return packed + state.digest()

    def fits(self, block: BlockHash, value: bytes) -> bool:
        """Say whether a value is a block's own."""
        state = self._state.copy()
        state.update(block + value[:LOCATION_BYTES])
        return state.digest() == value[LOCATION_BYTES:]

    def unpack(self, blocks: Sequence[BlockHash], values: bytes) -> tuple[Location, ...]:
        """Return the locations of the leading blocks up to the first whose value is not its own.

        values: those of blocks ``[0, len(values) / ENTRY_BYTES)``, one after the other. About 1 us a value.
        Raises ProtocolError when they are no whole number of values.
        """
        if len(values) % ENTRY_BYTES:
            raise ProtocolError(f"entries: expected a multiple of {ENTRY_BYTES} bytes, found {len(values)}")
        fresh, verified = self._state.copy, []
        for block, (location, digest) in zip(blocks, _ENTRY.iter_unpack(values), strict=False):
            state = fresh()
            state.update(block + location)
            if state.digest() != digest or location[0] > TIER_MAX:
                break
            verified.append(location)
        return unpack_locations(b"".join(verified))


def keyed_digest(what: str, size: int, key: bytes) -> hashlib.blake2b:
    """Return a fresh digest. what: values of one kind never have the digest of another. key: of any length."""
    fixed = hashlib.blake2b(key, person=f"{PREFIX} key".encode()).digest() if key else b""
    return hashlib.blake2b(digest_size=size, key=fixed, person=f"{PREFIX} {what}".encode())


def pack_record(record: WorkerRecord, key: bytes = b"") -> bytes:
    """Return the value of a worker's key."""
    return pack_envelope(record.incarnation, _encode_record(record), key)


def pack_envelope(incarnation: bytes, body: bytes, key: bytes = b"") -> bytes:
    """Return an encoded record behind its header. Incarnation first, so that a script can compare it."""
    return RECORD_MAGIC + incarnation + _record_digest(body, key) + body


def _record_digest(body: bytes | memoryview, key: bytes) -> bytes:
    state = keyed_digest("record", RECORD_DIGEST_BYTES, key)
    state.update(body)
    return state.digest()


def unpack_record(packed: bytes, *, namespace: str, worker: str, key: bytes = b"") -> WorkerRecord:
    """Return the record stored under a worker's name.

    Raises DigestMismatch when it is damaged or not of this key, ProtocolError when malformed or of another worker.
    """
    if not packed.startswith(RECORD_MAGIC) or not RECORD_HEADER_BYTES < len(packed) <= RECORD_BYTES_MAX:
        raise ProtocolError(f"record of worker {worker}: expected {RECORD_MAGIC!r}..., found {packed[:8]!r}")
    body = memoryview(packed)[RECORD_HEADER_BYTES:]
    digest = packed[RECORD_HEADER_BYTES - RECORD_DIGEST_BYTES : RECORD_HEADER_BYTES]
    if not hmac.compare_digest(digest, _record_digest(body, key)):
        raise DigestMismatch(f"record of worker {worker}: its digest does not fit: damaged, or of another index_key")
    try:
        record = _decode_record(body)
    except msgspec.MsgspecError as exc:
        raise ProtocolError(f"record of worker {worker}: {exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"record of worker {worker}: {type(exc).__name__}") from exc
    found = (record.schema, record.namespace, record.worker, record.incarnation)
    incarnation = packed[len(RECORD_MAGIC) :][:INCARNATION_BYTES]
    expected = (SCHEMA_VERSION, namespace, worker, incarnation)
    if found != expected:
        raise ProtocolError(f"record of worker {worker}: expected {expected}, found {found}")
    for endpoint in record.ranks:
        _check_endpoint(endpoint, worker)
    return record


def _check_endpoint(endpoint: RankEndpoint, worker: str) -> None:
    """Refuse what could not be a rank's memory: these numbers become addresses that a reader asks for."""
    well_formed = (
        len(endpoint.incarnation) == INCARNATION_BYTES
        and 0 < len(endpoint.memories) <= len(Tier)
        and all(0 < memory.slot_count <= SLOT_COUNT_MAX for memory in endpoint.memories)
        and endpoint.slot_count <= SLOT_COUNT_MAX
        and 0 <= endpoint.table <= _U64_MAX
        and all(
            0 <= segment.base <= _U64_MAX and 0 < segment.slot_bytes <= segment.stride_bytes <= _U64_MAX
            for memory in endpoint.memories
            for segment in memory.segments
        )
    )
    if not well_formed:
        raise ProtocolError(f"record of worker {worker}: rank {endpoint.rank} describes no memory")
