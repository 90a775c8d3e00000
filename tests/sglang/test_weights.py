"""Weights that change under a running engine, as one rank's scheduler sees it, over SGLang's own page allocator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.engines.common.weight_digest import WeightsReader
from ghostcacher_connector.engines.common.weight_watch import READ_AGAIN_MAX_S
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup
from ghostcacher_connector.engines.sglang.scheduling.scheduler import ConnectorScheduler
from ghostcacher_connector.identity.fingerprint import WEIGHTS_AS_STARTED
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import LookupService
from ghostcacher_connector.slots import SlotTable, first_generations

PAGES = 16
PAGE = 4
BATCH: Any = SimpleNamespace(extend_num_tokens=0, forward_mode=SimpleNamespace(is_extend=lambda: True), reqs=[])


class Rig:
    """A rank that does not speak for its worker (it needs no Redis), with a model and pages of its own.

    moves: the weight epochs that the rank has moved to.
    """

    def __init__(self) -> None:
        self.allocator: Any = PagedTokenToKVPoolAllocator(PAGES * PAGE, PAGE, torch.float32, "cpu", None, False)
        self.table = SlotTable(PAGES + 1)
        self.model = torch.nn.Linear(4, 4)
        self.moves: list[str] = []
        self.recorder = Recorder()
        self.lookups = LookupService(MemoryIndex(), list)
        reader = WeightsReader()
        engine: Any = SimpleNamespace(
            fleet=None,
            table=self.table,
            generations=first_generations(PAGES + 1),
            page_tokens=PAGE,
            page_bytes=64,
            page_count=PAGES + 1,
            lookups=self.lookups,
            forecaster=Forecaster(1000.0),
            recorder=self.recorder,
            request_recorder=self.recorder,
            ranks=RankGroup(None),
            runtime=SimpleNamespace(puller=None, copier=None),
            read_weights=lambda model: [reader.digest(model)],
            move=self.moves.append,
        )
        self.scheduling = ConnectorScheduler(engine, self.allocator, Settings())

    def offer(self, name: int, pages: int = 2) -> tuple[bool, torch.Tensor]:
        """Compute a batch that fills pages, and offer them; return whether they were taken, and their tokens."""
        self.scheduling.batch_begins(BATCH)
        tokens = self.allocator.alloc(pages * PAGE)
        keys = [bytes([name, number]).hex() * 16 for number in range(pages)]
        return self.scheduling.offer(keys, None, tokens, []), tokens

    def publish(self) -> int:
        """Publish what is computed, as SGLang has it done; return how many offers that were."""
        count = self.scheduling.begin_pass()
        assert all(self.scheduling.publish_oldest() for _ in range(count))
        return count

    def published(self) -> int:
        return int(self.scheduling.guard._published.sum())

    def change(self, by: float = 1.0, name: str = "update_weights_from_disk") -> None:
        self.scheduling.weights_may_change(self.model, name)
        with torch.no_grad():
            self.model.weight += by

    def flush(self) -> None:
        """What SGLang's `flush_cache` does."""
        self.scheduling.reset()
        self.allocator.clear()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.lookups.stop()


def test_changed_weights_withdraw_what_is_published_and_what_is_offered(rig: Rig) -> None:
    """Pages that were computed before are bumped; offers on their way stand for nothing, but they count."""
    _, tokens = rig.offer(1)
    rig.publish()
    pages = np.unique(tokens.numpy() // PAGE)
    before = [rig.table.generation(int(page)) for page in pages]
    rig.offer(2)
    rig.change()
    assert rig.publish() == 1
    assert rig.published() == 0
    assert [rig.table.generation(int(page)) for page in pages] == [generation + 1 for generation in before]
    assert len(rig.moves) == 1
    assert rig.moves[0] != WEIGHTS_AS_STARTED


@pytest.mark.parametrize("settle", [lambda rig: rig.scheduling.begin_pass(), lambda rig: rig.scheduling.match("r", [])])
def test_rank_moves_before_anything_is_computed_with_the_new_weights(rig: Rig, settle: Callable[[Rig], Any]) -> None:
    """Whichever comes first of all that leads to a batch."""
    rig.change()
    settle(rig)
    assert len(rig.moves) == 1
    rig.scheduling.batch_begins(BATCH)
    assert len(rig.moves) == 1


def test_a_batch_that_follows_an_update_settles_it(rig: Rig) -> None:
    rig.change()
    rig.scheduling.batch_begins(BATCH)
    assert len(rig.moves) == 1


def test_flushed_cache_is_shared_again_at_once(rig: Rig) -> None:
    """The update flushes by itself: what is computed next is of the new weights alone."""
    rig.offer(1)
    rig.publish()
    rig.change()
    rig.flush()
    taken, _ = rig.offer(2)
    assert taken
    rig.publish()
    assert rig.published() == 2


def test_cache_that_was_not_flushed_is_not_shared_until_it_is(rig: Rig) -> None:
    """SGLang goes on with pages of the old weights, and so with whatever it computes on top of them."""
    rig.offer(1)
    rig.publish()
    rig.change()
    assert rig.offer(2)[0] is False
    assert rig.publish() == 0
    rig.flush()
    assert rig.offer(3)[0] is True
    rig.publish()
    assert rig.published() == 2
    assert len(rig.moves) == 1


def test_same_weights_again_change_nothing(rig: Rig) -> None:
    """A reload of the same files is read, and that is all."""
    rig.offer(1)
    rig.publish()
    rig.change(0.0)
    assert rig.offer(2)[0] is True
    rig.publish()
    assert rig.published() == 4
    assert rig.moves == []


@pytest.mark.parametrize("flushed", [True, False])
def test_weights_that_could_not_be_read_are_read_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, flushed: bool
) -> None:
    """When all ranks have waited long enough. What was computed since the call is of the same weights."""
    rig.offer(1)
    rig.publish()
    rig.change(0.0)
    with monkeypatch.context() as broken:
        broken.setattr(type(rig.model), "named_parameters", lambda _: 1 / 0)
        if flushed:
            rig.flush()
        rig.offer(2)
    rig.scheduling.begin_pass()
    assert len(rig.moves) == 1
    asked: list[int] = []
    monkeypatch.setattr(RankGroup, "least", lambda _, value: asked.append(value) or 0)
    monkeypatch.setattr(rig.scheduling._weights, "_clock", lambda: time.monotonic() + READ_AGAIN_MAX_S)
    rig.scheduling.begin_pass()
    assert (asked, len(rig.moves)) == ([1], 1)
    monkeypatch.undo()
    monkeypatch.setattr(rig.scheduling._weights, "_clock", lambda: time.monotonic() + READ_AGAIN_MAX_S)
    rig.scheduling.begin_pass()
    assert rig.moves[1:] == [WEIGHTS_AS_STARTED]
    assert rig.published() == 0
    assert rig.offer(3)[0] is flushed


def test_weights_of_the_start_are_the_start_again(rig: Rig) -> None:
    before = rig.model.weight.detach().clone()
    rig.change()
    rig.scheduling.begin_pass()
    rig.scheduling.weights_may_change(rig.model, "update_weights_from_tensor")
    with torch.no_grad():
        rig.model.weight.copy_(before)
    rig.scheduling.begin_pass()
    assert rig.moves[1] == WEIGHTS_AS_STARTED
    assert rig.moves[0] != WEIGHTS_AS_STARTED
