"""What a scheduler knows of its ranks' objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects import directory as directory_module
from ghostcacher_connector.objects.directory import ObjectDirectory
from ghostcacher_connector.objects.stores.base import ListedObject, StoreError, StoreFault
from ghostcacher_connector.objects.stores.file_store import FileStore
from tests.support.index_parts import wait_until
from tests.support.object_tiers import BLOCK_BYTES, NAMESPACE, chain, flush, write_all

PROMPT = chain(12)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


def open_directory(store: FileStore, ranks: int = 2, recorder: Recorder | None = None) -> ObjectDirectory:
    return ObjectDirectory(
        store, namespace=NAMESPACE, block_bytes=[BLOCK_BYTES] * ranks, recorder=recorder or Recorder()
    )


class Closing(closing[ObjectDirectory]):
    """A directory for the time of a `with` block."""

    def __init__(self, directory: ObjectDirectory) -> None:
        super().__init__(directory)

    def __exit__(self, *_: object) -> None:
        self.thing.close(60)


def test_a_prefix_is_as_long_as_the_rank_that_has_least(store: FileStore) -> None:
    write_all(store, PROMPT, rank=0)
    write_all(store, PROMPT[:8], rank=1)
    with Closing(open_directory(store)) as directory:
        assert directory.wait_listed(60)
        assert directory.longest(PROMPT) == 8
    with Closing(open_directory(store, ranks=3)) as directory:
        assert directory.wait_listed(60)
        assert directory.longest(PROMPT) == 0


def test_what_ranks_write_and_drop_is_known_soon(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "REFRESH_S", 0.02)
    with Closing(open_directory(store, ranks=1)) as directory:
        write_all(store, PROMPT)
        wait_until(lambda: directory.longest(PROMPT) == 12, 60, "what was written is known")
        with Closing(open_directory(store, ranks=1)) as other:
            assert other.wait_listed(60)
            flush(other, PROMPT[:1])
        wait_until(lambda: directory.longest(PROMPT) == 0, 60, "what was dropped is known")


def test_a_store_that_is_away_at_the_start_is_read_later(store: FileStore) -> None:
    write_all(store, PROMPT)
    away = [True]

    class Away(FileStore):
        def walk(self, prefix: str, count_max: int) -> Iterator[ListedObject]:
            if away[0]:
                raise StoreError(StoreFault.UNREACHABLE, prefix)
            return super().walk(prefix, count_max)

    recorder = Recorder()
    with Closing(open_directory(Away(store._folder), ranks=1, recorder=recorder)) as directory:
        wait_until(lambda: "gc_object_errors_total" in recorder.drain(), 60, "it was asked")
        assert directory.longest(PROMPT) == 0
        away[0] = False
        assert directory.wait_listed(60)
        assert directory.longest(PROMPT) == 12
