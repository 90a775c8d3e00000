"""The Redis key schema: every key, every value format, and nothing else. Versioned as a whole.

    gc1:namespaces                        zset   namespace -> when it was last used (server time, s)
    gc1:{<ns>}:workers                    zset   worker name -> when it last renewed (server time, s)
    gc1:{<ns>}:worker:<name>              string RECORD_MAGIC, incarnation, msgpack WorkerRecord; TTL = lease
    gc1:{<ns>}:report:<worker>:<report>   hash   small values of a worker, such as its load; TTL = the report's
    gc1:{<ns>:<p>}:blocks:<incarnation>   hash   block hash -> packed Location; TTL = lease

The braces are hash tags: what one script touches lies on one shard, and the partitions ``p`` of a namespace spread
over shards. The entries of a worker are one hash a partition, so that a lease is one TTL: a worker that dies takes its
entries along, and a worker that restarts begins new keys. Nothing here ever needs a scan of the key space.

A change of any format is a new SCHEMA_VERSION, which is part of every key: two versions never read each other.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import partial

import msgspec

from ghostcacher_connector.errors import ConfigError, ProtocolError
from ghostcacher_connector.types import (
    INCARNATION_BYTES,
    BlockHash,
    Location,
    RankEndpoint,
    Tier,
    WorkerRecord,
)

SCHEMA_VERSION = 1
PREFIX = f"gc{SCHEMA_VERSION}"

PARTITIONS_SINGLE = 1
PARTITIONS_CLUSTER = 16

BLOCK_HASH_BYTES_MIN = 8
BLOCK_HASH_BYTES_MAX = 64

RECORD_MAGIC = b"gcw1"
RECORD_HEADER_BYTES = len(RECORD_MAGIC) + INCARNATION_BYTES
RECORD_BYTES_MAX = 8 << 20
"""Agent metadata is a few KiB a rank; more than this is not a record of ours."""

_LOCATION = struct.Struct("<BIQ")
LOCATION_BYTES = _LOCATION.size
TIER_MAX = int(max(Tier))
SLOT_COUNT_MAX = 1 << 32
_U64_MAX = (1 << 64) - 1

_TIERS = {int(tier): tier for tier in Tier}
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


def report_key(namespace: str, worker: str, report: str) -> str:
    """Return the key of a report. A report's name has no colon, so that no two names make one key."""
    if not _REPORT.fullmatch(report):
        raise ConfigError(f"report name: expected 1 to 64 of [0-9A-Za-z._-], got {report!r}")
    return f"{PREFIX}:{{{check_namespace(namespace)}}}:report:{check_worker(worker)}:{report}"


def blocks_key(namespace: str, partition: int, incarnation: bytes) -> str:
    return f"{PREFIX}:{{{check_namespace(namespace)}:{partition}}}:blocks:{incarnation.hex()}"


def is_namespace(namespace: str) -> bool:
    return _NAMESPACE.fullmatch(namespace) is not None


def check_namespace(namespace: str) -> str:
    """Return the namespace; raise ConfigError when it could break out of its hash tag."""
    if not is_namespace(namespace):
        raise ConfigError(f"namespace: expected 1 to 128 of [0-9A-Za-z._-], got {namespace!r}")
    return namespace


def check_worker(worker: str) -> str:
    """Return the worker's name; raise ConfigError when it is empty, too long or has blanks or control characters."""
    if not _WORKER.fullmatch(worker):
        raise ConfigError(f"worker name: expected 1 to 255 characters without blanks, got {worker!r}")
    return worker


def partition_of(root: BlockHash, partitions: int) -> int:
    """Return the partition of a chain: all blocks with one root lie together."""
    return root[0] % partitions


def pack_location(location: Location) -> bytes:
    """Return the value of an entry: tier u8, slot u32, generation u64, little endian, LOCATION_BYTES in all."""
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


def pack_record(record: WorkerRecord) -> bytes:
    """Return the value of a worker's key. Incarnation first, so that a script can compare it."""
    return RECORD_MAGIC + record.incarnation + _encode_record(record)


def unpack_record(packed: bytes, *, namespace: str, worker: str) -> WorkerRecord:
    """Return the record stored under a worker's name; raise ProtocolError unless it is sound and says the same."""
    if not packed.startswith(RECORD_MAGIC) or not RECORD_HEADER_BYTES < len(packed) <= RECORD_BYTES_MAX:
        raise ProtocolError(f"record of worker {worker}: expected {RECORD_MAGIC!r}..., found {packed[:8]!r}")
    try:
        record = _decode_record(memoryview(packed)[RECORD_HEADER_BYTES:])
    except msgspec.MsgspecError as exc:
        raise ProtocolError(f"record of worker {worker}: {exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"record of worker {worker}: {type(exc).__name__}") from exc
    found = (record.schema, record.namespace, record.worker, record.incarnation)
    incarnation = packed[len(RECORD_MAGIC) : RECORD_HEADER_BYTES]
    expected = (SCHEMA_VERSION, namespace, worker, incarnation)
    if found != expected:
        raise ProtocolError(f"record of worker {worker}: expected {expected}, found {found}")
    for endpoint in record.ranks:
        _check_endpoint(endpoint, worker)
    return record


def _check_endpoint(endpoint: RankEndpoint, worker: str) -> None:
    """Refuse what could not be a rank's memory: these numbers become addresses that a reader asks for."""
    sound = (
        len(endpoint.incarnation) == INCARNATION_BYTES
        and 0 < endpoint.slot_count <= SLOT_COUNT_MAX
        and 0 <= endpoint.table <= _U64_MAX
        and all(
            0 <= segment.base <= _U64_MAX and 0 < segment.slot_bytes <= segment.stride_bytes <= _U64_MAX
            for segment in endpoint.segments
        )
    )
    if not sound:
        raise ProtocolError(f"record of worker {worker}: rank {endpoint.rank} describes no memory")
