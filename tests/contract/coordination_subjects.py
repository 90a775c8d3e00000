"""The coordination stores that the contract suite runs over, each with what a test needs beside the port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.core import schema
from ghostcacher_connector.core.coordination.base import CoordinationStore
from ghostcacher_connector.core.coordination.codec import time_load
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.index.memory import Expiring
from tests.support.acl_users import set_everything
from tests.support.index_parts import FakeClock, wait_until

SHORT_S = 0.2
FOREVER_S = 1e7


class StoreSubject(NamedTuple):
    """A store under test. client: another client of it, with the same key or another. flush: lose everything.

    pass_time: let a short time run out, on whatever clock counts. put_entry: append raw bytes to a stream, past all our
    code. put_load: replace what lies under a worker's load. trim: keep only the newest entries of a stream.
    peek, poke: return, and replace, the raw value of a "load", "session", "drain" or "flush report" of
    a ref, key, worker, or order and worker.
    entries: the raw entries of a stream. put_router: enter a raw router, for long.
    """

    store: CoordinationStore
    client: Callable[..., CoordinationStore]
    flush: Callable[[], object]
    pass_time: Callable[[], None]
    put_entry: Callable[[str, bytes], object]
    put_load: Callable[[WorkerRef, bytes], object]
    trim: Callable[[str, int], object]
    peek: Callable[[str, Any], bytes]
    poke: Callable[[str, Any, bytes], object]
    entries: Callable[[str], list[bytes]]
    put_router: Callable[[bytes], object]


KEYS: dict[str, Callable[[Any], str]] = {
    "load": lambda ref: schema.load_key(ref.namespace, ref.worker),
    "session": schema.session_key,
    "drain": schema.drain_key,
    "flush report": lambda place: schema.flush_report_key(*place),
}


def memory_subject(key: bytes) -> Iterator[StoreSubject]:
    clock = FakeClock()
    store = MemoryCoordinationStore(clock=clock, key=key)
    streams = {"news": store._events, "texts": store._updates, "flushes": store._flushes}

    def put_load(ref: WorkerRef, value: bytes) -> None:
        key = schema.load_key(ref.namespace, ref.worker)
        store._loads.put(key, time_load(ref.incarnation, clock.now, value), 60.0)

    def trim(stream: str, keep: int) -> None:
        entries = streams[stream].entries
        while len(entries) > keep:
            entries.popleft()

    def place(kind: str, whose: Any) -> tuple[Expiring[bytes], object]:
        if kind == "load":
            return store._loads, KEYS[kind](whose)
        if kind == "flush report":
            return store._flush_reports, KEYS[kind](whose)
        return (store._sessions if kind == "session" else store._drains), whose

    def peek(kind: str, whose: Any) -> bytes:
        values, key = place(kind, whose)
        found = values.get(key)
        assert found is not None
        return found

    def poke(kind: str, whose: Any, value: bytes) -> None:
        values, key = place(kind, whose)
        values.put(key, value, FOREVER_S)

    yield StoreSubject(
        store,
        store.client,
        store.flush,
        lambda: clock.advance(0.05),
        lambda stream, value: streams[stream].add(value, clock.now),
        put_load,
        trim,
        peek,
        poke,
        lambda stream: [entry.value for entry in streams[stream].entries],
        lambda value: store._routers.put(value, value, FOREVER_S),
    )
    store.close()


def redis_subject(server: RedisServer, own_key: bytes, *, cluster: bool) -> Iterator[StoreSubject]:
    url = set_everything(server, cluster=cluster)
    with ExitStack() as stores, server.client() as raw:
        raw.flushall()

        def client(key: bytes = own_key) -> RedisCoordinationStore:
            return stores.enter_context(closing(RedisCoordinationStore(url, timeout_s=5.0, key=key)))

        def put_load(ref: WorkerRef, value: bytes) -> None:
            raw.set(schema.load_key(ref.namespace, ref.worker), time_load(ref.incarnation, 1.7e9, value))

        yield StoreSubject(
            client(),
            client,
            raw.flushall,
            lambda: None,
            lambda stream, value: raw.xadd(schema.router_key(stream), {"d": value}),
            put_load,
            lambda stream, keep: raw.xtrim(schema.router_key(stream), maxlen=keep, approximate=False),
            lambda kind, whose: raw.get(KEYS[kind](whose)),
            lambda kind, whose, value: raw.set(KEYS[kind](whose), value),
            lambda stream: [fields[b"d"] for _, fields in raw.xrange(schema.router_key(stream))],
            lambda value: raw.zadd(schema.router_key("routers"), {value: FOREVER_S * 1e6}),
        )


def gone(routing: StoreSubject, condition: Callable[[], object]) -> None:
    """Wait until a short time has run out."""

    def over() -> bool:
        routing.pass_time()
        return not condition()

    wait_until(over)
