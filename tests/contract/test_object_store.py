"""What every object store promises, over files and over a real S3 server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ghostcacher_connector.metrics.catalog import STORE_FAULTS
from ghostcacher_connector.objects.stores.base import ObjectStore, StoreError, StoreFault
from ghostcacher_connector.objects.stores.open_store import open_store
from tests.support.object_tiers import chain, opened, right, write_all

DATA = np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8).data


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a store without objects is."""
    if request.param == "file":
        yield f"file://{tmp_path}/objects"
        return
    server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server.url(f"contract/{uuid.uuid4().hex}")


@pytest.fixture
def store(url: str) -> ObjectStore:
    return open_store(url, timeout_s=30)


def names(store: ObjectStore, prefix: str, count_max: int = 1000) -> list[str]:
    return sorted(one.name for one in store.walk(prefix, count_max))


def test_what_was_created_is_read_and_listed(store: ObjectStore) -> None:
    assert store.create("v1/a/one", DATA)
    assert bytes(store.read("v1/a/one", len(DATA))) == bytes(DATA)
    (found,) = store.walk("v1/", 10)
    assert (found.name, found.size_bytes) == ("v1/a/one", len(DATA))
    assert found.written_at > 1.7e9


def test_what_exists_is_never_replaced(store: ObjectStore) -> None:
    assert store.create("v1/a/one", DATA[:100])
    assert not store.create("v1/a/one", DATA[100:200])
    assert bytes(store.read("v1/a/one", 100)) == bytes(DATA[:100])


def test_of_many_writers_one_creates(store: ObjectStore) -> None:
    """At the same instant, too."""
    barrier = threading.Barrier(6)
    created: list[bool] = []

    def write() -> None:
        barrier.wait()
        created.append(store.create("v1/a/one", DATA[: 1 << 20]))

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 5 + [True]
    assert names(store, "") == ["v1/a/one"]


def test_a_shorter_object_gives_what_it_has(store: ObjectStore) -> None:
    store.create("v1/a/one", DATA[:100])
    assert bytes(store.read("v1/a/one", 40)) == bytes(DATA[:40])
    assert bytes(store.read("v1/a/one", 4000)) == bytes(DATA[:100])
    store.create("v1/a/empty", memoryview(b""))
    assert bytes(store.read("v1/a/empty", 4000)) == b""


def test_what_is_not_there_is_missing(store: ObjectStore) -> None:
    with pytest.raises(StoreError) as raised:
        store.read("v1/a/none", 10)
    assert raised.value.fault is StoreFault.MISSING
    with pytest.raises(StoreError) as raised:
        store.move("v1/a/none", "v1/b/none")
    assert raised.value.fault is StoreFault.MISSING
    assert names(store, "v1/") == []


def test_deleting_is_of_many_and_of_none(store: ObjectStore) -> None:
    for name in ("v1/a/one", "v1/a/two", "v1/b/one"):
        store.create(name, DATA[:10])
    store.delete(["v1/a/one", "v1/a/none", "v1/b/one"])
    store.delete(["v1/a/one"])
    store.delete([])
    assert names(store, "v1/") == ["v1/a/two"]


def test_a_name_that_is_deleted_can_be_created_again(store: ObjectStore) -> None:
    store.create("v1/a/one", DATA[:10])
    store.delete(["v1/a/one"])
    assert store.create("v1/a/one", DATA[10:20])
    assert bytes(store.read("v1/a/one", 10)) == bytes(DATA[10:20])


def test_what_is_moved_has_one_name(store: ObjectStore) -> None:
    """Also where an earlier one of that name was put before."""
    for data in (DATA[:10], DATA[10:20]):
        store.create("v1/a/one", data)
        store.move("v1/a/one", "v1/b/one")
    assert names(store, "v1/") == ["v1/b/one"]
    assert bytes(store.read("v1/b/one", 10)) == bytes(DATA[10:20])


def test_a_listing_is_bounded_and_of_whole_words(store: ObjectStore) -> None:
    for index in range(7):
        store.create(f"v1/a/{index}", DATA[:10])
    store.create("v1/ab/other", DATA[:10])
    assert len(names(store, "v1/a/", 3)) == 3
    assert names(store, "v1/a/") == [f"v1/a/{index}" for index in range(7)]
    assert names(store, "v1/none/") == []


def test_labels_of_faults_are_those_of_the_catalog() -> None:
    assert set(STORE_FAULTS) == {fault.value for fault in StoreFault}


def test_a_tier_finds_after_a_restart_what_it_wrote(url: str) -> None:
    """With stores of their own, as processes have them."""
    prompt = chain(20)
    write_all(open_store(url, timeout_s=30), prompt)
    with opened(open_store(url, timeout_s=30)) as tier:
        assert right(tier, prompt) == 20
