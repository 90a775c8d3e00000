"""The coordination stores that the contract suite runs over, each with what a test needs beside the port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import NamedTuple

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.coordination.codec import stamp_load
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.base import WorkerRef
from tests.support.index_parts import FakeClock, wait_until

SHORT_S = 0.2


class StoreSubject(NamedTuple):
    """A store under test. client: another client of the same store. flush: lose everything.

    pass_time: let a short time run out, on whatever clock counts. put_entry: append raw bytes to a stream, past all our
    code. put_load: replace what lies under a worker's load. trim: keep only the newest entries of a stream.
    """

    store: CoordinationStore
    client: Callable[[], CoordinationStore]
    flush: Callable[[], object]
    pass_time: Callable[[], None]
    put_entry: Callable[[str, bytes], object]
    put_load: Callable[[WorkerRef, bytes], object]
    trim: Callable[[str, int], object]


def memory_subject() -> Iterator[StoreSubject]:
    clock = FakeClock()
    store = MemoryCoordinationStore(clock=clock)
    streams = {"news": store._events, "texts": store._updates}

    def put_load(ref: WorkerRef, value: bytes) -> None:
        key = schema.load_key(ref.namespace, ref.worker)
        store._loads.put(key, stamp_load(ref.incarnation, clock.now, value), 60.0)

    def trim(stream: str, keep: int) -> None:
        entries = streams[stream].entries
        while len(entries) > keep:
            entries.popleft()

    yield StoreSubject(
        store,
        store.client,
        store.flush,
        lambda: clock.advance(0.05),
        lambda stream, value: streams[stream].add(value, clock.now),
        put_load,
        trim,
    )
    store.close()


def redis_subject(server: RedisServer, *, cluster: bool) -> Iterator[StoreSubject]:
    url = server.url.replace("redis://", "redis+cluster://") if cluster else server.url
    with ExitStack() as stores, server.client() as raw:
        raw.flushall()

        def client() -> RedisCoordinationStore:
            return stores.enter_context(closing(RedisCoordinationStore(url, timeout_s=5.0)))

        def put_load(ref: WorkerRef, value: bytes) -> None:
            raw.set(schema.load_key(ref.namespace, ref.worker), stamp_load(ref.incarnation, 1.7e9, value))

        yield StoreSubject(
            client(),
            client,
            raw.flushall,
            lambda: None,
            lambda stream, value: raw.xadd(schema.router_key(stream), {"d": value}),
            put_load,
            lambda stream, keep: raw.xtrim(schema.router_key(stream), maxlen=keep, approximate=False),
        )


def gone(routing: StoreSubject, condition: Callable[[], object]) -> None:
    """Wait until a short time has run out."""

    def over() -> bool:
        routing.pass_time()
        return not condition()

    wait_until(over, timeout_s=SHORT_S + 5)
