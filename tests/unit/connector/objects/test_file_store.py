"""What files need beyond the contract: writers at the same instant, and file systems that lack something."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from ghostcacher_connector.objects.stores import file_store
from ghostcacher_connector.objects.stores.base import StoreError, StoreFault
from ghostcacher_connector.objects.stores.file_store import FileStore

NAME = "v1/a/one"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


def aligned(fill: int) -> memoryview:
    """Return a page that O_DIRECT would take."""
    page = mmap.mmap(-1, 4096)
    page[:] = bytes([fill]) * 4096
    return memoryview(page)


def test_of_two_that_have_written_at_the_same_instant_one_gets_the_name(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither saw a file of that name before it began."""
    both = threading.Barrier(2)
    write = file_store._write

    def write_and_wait(path: Path, data: memoryview) -> None:
        write(path, data)
        both.wait(60)

    monkeypatch.setattr(file_store, "_write", write_and_wait)
    created: dict[int, bool] = {}
    threads = [
        threading.Thread(target=lambda fill=fill: created.update({fill: store.create(NAME, aligned(fill))}))
        for fill in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created.values()) == [False, True]
    winner = next(fill for fill, won in created.items() if won)
    assert bytes(store.read(NAME, 4096)) == bytes(aligned(winner))
    assert not any((tmp_path / "tmp").iterdir())


def test_a_file_system_without_hard_links_is_good_enough(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, f"{source} {target}")

    monkeypatch.setattr(os, "link", refuse)
    assert store.create(NAME, aligned(1))
    assert not store.create(NAME, aligned(2))
    assert bytes(store.read(NAME, 4096)) == bytes(aligned(1))


def test_a_file_system_without_direct_io_is_written_through_the_page_cache(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    open_file = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        asked.append(bool(flags & os.O_DIRECT))
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        return open_file(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    assert store.create(NAME, aligned(1))
    assert asked == [True, False]
    assert bytes(store.read(NAME, 4096)) == bytes(aligned(1))


def test_what_is_not_aligned_is_written_all_the_same(store: FileStore) -> None:
    data = memoryview(bytes(range(256)) * 20)[3:5000]
    assert store.create(NAME, data)
    assert bytes(store.read(NAME, 9999)) == bytes(data)


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (errno.EACCES, StoreFault.REFUSED),
        (errno.EROFS, StoreFault.REFUSED),
        (errno.ENOSPC, StoreFault.FULL),
        (errno.EDQUOT, StoreFault.FULL),
        (errno.ESTALE, StoreFault.UNREACHABLE),
        (errno.EIO, StoreFault.OTHER),
    ],
)
def test_what_the_system_says_has_a_reason(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, number: int, fault: StoreFault
) -> None:
    def refuse(path: Path, data: memoryview) -> None:
        raise OSError(number, f"{path} {len(data)}")

    monkeypatch.setattr(file_store, "_write", refuse)
    with pytest.raises(StoreError) as raised:
        store.create(NAME, aligned(1))
    assert raised.value.fault is fault
    assert list(store.walk("v1/", 10)) == []
