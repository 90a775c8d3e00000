"""What a Redis full of strangers' values, or a server that is no Redis, can cost: bounded bytes, elements and time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
import redis
from msgspec.structs import replace

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination.base import STREAM_START, Cursor
from ghostcacher_connector.core.coordination.codec import ITEM_BYTES_MAX
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.errors import IndexReplyTooLarge, IndexUnavailable
from ghostcacher_connector.core.index.redis import RedisIndex
from ghostcacher_connector.core.redis import reply_bounds
from ghostcacher_connector.core.redis.reply_bounds import REPLY_BYTES_MAX, REPLY_LINES_MAX, BoundedSocket
from tests.support.coordination_parts import make_load, make_ref, make_update
from tests.support.index_parts import NAMESPACE, make_record
from tests.support.redis_proxy import make_cluster

KEY = b"the fleet's secret"
TTL_S = 60.0
BEGINNING = Cursor(STREAM_START, STREAM_START)
BUFFER_BYTES = 1 << 20
"""Of either end of a connection to a hostile server. Left to itself, the kernel may hold as much as a whole reply."""
SOCKET_BUFFERS_BYTES = 2 * 2 * BUFFER_BYTES + (1 << 20)
"""What the kernel may hold of what was sent and not read: it takes twice what it is asked for, and a little more."""


class HostileServer:
    """Answers every request with a head, and then with one piece again and again, until the connection is closed."""

    def __init__(self, head: bytes, piece: bytes, *, pause_s: float = 0.0, pieces_max: int = 1 << 40) -> None:
        self._head, self._piece, self._pause_s, self._pieces_max = head, piece, pause_s, pieces_max
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.pieces_sent: list[int] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        sent = 0
        with peer, suppress(OSError):
            # What a client says of itself, and whatever it asks first.
            while b"CLIENT" in (said := peer.recv(65536)):
                peer.sendall(b"+OK\r\n" * said.count(b"CLIENT"))
            peer.sendall(self._head)
            while sent < self._pieces_max:
                peer.sendall(self._piece)
                sent += 1
                time.sleep(self._pause_s)
        self.pieces_sent.append(sent)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)


CALLS: list[Callable[[str], object]] = [
    lambda url: RedisIndex(url, timeout_s=5.0).workers(NAMESPACE),
    lambda url: RedisCoordinationStore(url, timeout_s=5.0).loads([make_ref()]),
    lambda url: RedisCoordinationStore(url, timeout_s=5.0).read(BEGINNING, count=1, block_s=0.5),
]


@pytest.mark.parametrize("call", CALLS, ids=["index", "store", "waiting read"])
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"$99999999999\r\n", b"x" * 65536),
        (b"*99999999999\r\n", b"*0\r\n" * 16384),
        (b"*99999999999\r\n", b"$60000\r\n" + b"x" * 60000 + b"\r\n"),
        (b"", b"*1\r\n" * 16384),
        (b"+", b"x" * 65536),
    ],
    ids=["bulk", "elements", "bulks", "nested", "line"],
)
def test_endless_reply_ends_the_call(
    call: Callable[[str], object], head: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is announced, no more is read than the largest reply of ours has."""
    begin = BoundedSocket.__init__

    def begin_small(bounded: BoundedSocket, inner: socket.socket) -> None:
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        begin(bounded, inner)

    monkeypatch.setattr(BoundedSocket, "__init__", begin_small)
    with closing(HostileServer(head, piece)) as server, pytest.raises(IndexUnavailable):
        call(server.url)
    most = min(REPLY_BYTES_MAX, REPLY_LINES_MAX * len(piece) // max(1, piece.count(b"\n")) + (64 << 10))
    assert all(sent * len(piece) <= most + SOCKET_BUFFERS_BYTES for sent in server.pieces_sent)


def test_reply_that_trickles_ends_the_call() -> None:
    """A byte now and then does not hold a caller for ever, though none is late."""
    with (
        closing(HostileServer(b"$99999\r\n", b"x", pause_s=0.05, pieces_max=2000)) as server,
        closing(RedisIndex(server.url, timeout_s=0.2)) as index,
        pytest.raises(IndexUnavailable),
    ):
        index.workers(NAMESPACE)
    assert all(sent < 1000 for sent in server.pieces_sent)


@pytest.fixture
def store(server: RedisServer, raw: redis.Redis) -> Iterator[RedisCoordinationStore]:
    with closing(RedisCoordinationStore(server.url, timeout_s=5.0, key=KEY)) as store:
        yield store


@pytest.mark.parametrize("size", [ITEM_BYTES_MAX + 1, REPLY_BYTES_MAX + 1], ids=["an item", "a reply"])
def test_giant_entries_of_a_stream_are_passed_by(store: RedisCoordinationStore, raw: redis.Redis, size: int) -> None:
    """The entries around them come through, nothing is read twice, and what was refused is counted."""
    store.append_updates([make_update(seed=1)])
    for field in ("d", "other"):
        raw.xadd(schema.router_key("texts"), {field: b"x" * size})
    store.append_updates([make_update(seed=2)])
    cursor, found = BEGINNING, []
    while (batch := store.read(cursor, count=100, block_s=0)).cursor != cursor:
        cursor = batch.cursor
        found += batch.updates
    assert found == [make_update(seed=1), make_update(seed=2)]
    assert store.refusals()["map update: not authentic"] == 2
    assert ("stream: too large" in store.refusals()) is (size > REPLY_BYTES_MAX)


def test_giant_values_hide_nothing_else(store: RedisCoordinationStore, raw: redis.Redis) -> None:
    """Of many values asked for at once those that are too large to be ours are not even fetched."""
    giant, ours, theirs = b"x" * (REPLY_BYTES_MAX // 4), make_ref("ours"), [make_ref(f"w{n}") for n in range(8)]
    store.publish(ours, make_load(), [], [], ttl_s=TTL_S)
    store.put_sessions({b"ours": "w1"}, ttl_s=TTL_S)
    for number, ref in enumerate(theirs):
        raw.set(schema.load_key(ref.namespace, ref.worker), giant)
        raw.set(schema.session_key(b"%d" % number), giant)
        raw.zadd(schema.router_key("routers"), {giant[number:]: 1e15})
        raw.hset(schema.lock_key(b"%d" % number), mapping={"t": giant, "r": "r", "w": "w", "a": "1"})
        raw.expire(schema.lock_key(b"%d" % number), 1000)
    loads = store.loads([*theirs, ours])[1]
    assert [load is not None for load in loads] == [False] * 8 + [True]
    keys = [b"%d" % number for number in range(8)]
    assert store.sessions([*keys, b"ours"]) == [None] * 8 + ["w1"]
    assert store.heartbeat("router-1", ttl_s=TTL_S).routers == 1
    assert store.lock(keys, router="r", worker="w", ready_at=1.0, ttl_s=TTL_S).token is not None
    assert {"load: malformed", "session: malformed", "router: malformed"} <= store.refusals().keys()


def test_rosters_of_a_million_strangers_are_not_read(store: RedisCoordinationStore, raw: redis.Redis) -> None:
    """However many names a stranger enters, who was there longest is still looked at."""
    other = RedisCoordinationStore(
        f"redis://127.0.0.1:{raw.connection_pool.connection_kwargs['port']}", timeout_s=5.0, key=KEY
    )
    other.heartbeat("router-2", ttl_s=TTL_S)
    raw.zadd(schema.router_key("routers"), {b"stranger %d" % number: 1e15 for number in range(100_000)})
    assert store.heartbeat("router-1", ttl_s=TTL_S).routers == 2
    other.close()


def test_records_of_giants_hide_no_worker(server: RedisServer, raw: redis.Redis) -> None:
    """Names and records that are too large to be ours are passed by; our own are found, also behind many."""
    with closing(RedisIndex(server.url, timeout_s=10.0, key=KEY)) as index:
        records = [make_record("a"), make_record("z")]
        index.join(records[0], lease_ttl_s=TTL_S)
        for number in range(6):
            raw.zadd(schema.workers_key(NAMESPACE), {f"giant{number}": 1e15, "n" * (8 << 20): 1e15})
            raw.set(
                schema.worker_key(NAMESPACE, f"giant{number}"), schema.RECORD_MAGIC + bytes(schema.RECORD_BYTES_MAX)
            )
        index.join(records[1], lease_ttl_s=TTL_S)
        assert index.workers(NAMESPACE) == records
        assert index.workers() == records
        assert index.malformed_entries > 0


def test_large_directory_comes_in_pages(server: RedisServer, raw: redis.Redis) -> None:
    """All workers are found, however many bytes their records have together."""
    with closing(RedisIndex(server.url, timeout_s=10.0, key=KEY)) as index:
        names = {f"w{number}" for number in range(5)}
        for name in names:
            record = make_record(name)
            large = replace(record.ranks[0], agent_metadata=bytes(7 << 20))
            index.join(replace(record, ranks=(large,)), lease_ttl_s=TTL_S)
        assert {record.worker for record in index.workers(NAMESPACE)} == names


@pytest.mark.parametrize("cluster", [False, True])
def test_every_connection_is_bounded(cluster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those to the nodes of a cluster, which redis-py makes in another way."""
    arguments = ("--cluster-enabled", "yes") if cluster else ()
    with RedisServer(*arguments, tcp=True) as server:
        if cluster:
            make_cluster(server)
        url = server.url.replace("redis://", "redis+cluster://") if cluster else server.url
        with closing(RedisIndex(url, timeout_s=10.0)) as index:
            record = make_record()
            index.join(
                replace(record, ranks=(replace(record.ranks[0], agent_metadata=bytes(100_000)),)), lease_ttl_s=TTL_S
            )
            assert len(index.workers(NAMESPACE)) == 1
            monkeypatch.setattr(reply_bounds, "REPLY_BYTES_MAX", 50_000)
            with pytest.raises(IndexReplyTooLarge):
                index.workers(NAMESPACE)


def test_reply_too_large_is_named() -> None:
    """Whoever looks into the log learns that it was the size."""
    with (
        closing(HostileServer(b"$99999999999\r\n", b"x" * 65536)) as server,
        pytest.raises(IndexReplyTooLarge, match="expected at most"),
    ):
        CALLS[0](server.url)
