"""Which pages are not offered, told by SGLang's own tree: those of adapters and items, and what stands on them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import UnifiedCacheLinkerWrapper

from ghostcacher_connector.engines.sglang import hooks
from ghostcacher_connector.engines.sglang.scheduling.withholding import ADAPTERS_MAX, Withholding
from tests.sglang.loading_rig import PAGE, Rig

ADAPTER = "6f" * 16
TEXT = array("q", range(4 * PAGE))
ITEM = array("q", [*range(PAGE), MM_PAD_SHIFT_VALUE + 77, *range(PAGE + 1, 4 * PAGE)])


class Offers:
    """What is offered of SGLang's tree, and what of that is withheld."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig = Rig()
        self.withholding = Withholding()
        self.seen: list[bool] = []
        hooked: Any = SimpleNamespace(
            node_offered=lambda cache, node: self.seen.append(self.withholding.withholds(cache.tree_core, node))
        )
        monkeypatch.setattr(hooks, "_linker", hooked)
        offer = UnifiedCacheLinkerWrapper._offload_node

        def hooked_offer(wrapper: Any, node: Any, transfers: Any) -> None:
            hooks.node_offered(wrapper, node)
            offer(wrapper, node, transfers)

        monkeypatch.setattr(UnifiedCacheLinkerWrapper, "_offload_node", hooked_offer)

    def compute(self, tokens: array[int], *, first: int = 0, extra_key: str | None = None) -> list[bool]:
        """Enter tokens into the tree behind the first so many, which are there; return what is withheld of their path.

        Nothing is taken here, so SGLang offers what lies before them once more.
        """
        places = self.rig.allocator.alloc(len(tokens))
        key = RadixKey(tokens, extra_key=extra_key)
        self.rig.tree.insert(InsertParams(key=key, value=places, prev_prefix_len=first))
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Offers]:
    made = Offers(monkeypatch)
    yield made
    made.rig.puller.close()


def test_text_is_offered(offers: Offers) -> None:
    assert offers.compute(TEXT) == [False]
    assert offers.compute(TEXT, extra_key="a client's own") == [False]


@pytest.mark.parametrize("own", ["", "a client's own"])
def test_pages_of_an_adapter_are_withheld(offers: Offers, own: str) -> None:
    """SGLang's id of it, behind the client's own key, names a file and not what is in it."""
    offers.withholding.arrived(SimpleNamespace(lora_id=ADAPTER))  # type: ignore[arg-type]
    offers.withholding.arrived(SimpleNamespace(lora_id=None))  # type: ignore[arg-type]
    assert offers.compute(TEXT[: 2 * PAGE], extra_key=own + ADAPTER) == [True]
    assert set(offers.compute(TEXT, first=2 * PAGE, extra_key=own + ADAPTER)) == {True}
    assert offers.compute(TEXT) == [False]


def test_more_adapters_than_are_remembered_have_no_key_believed(offers: Offers) -> None:
    for number in range(ADAPTERS_MAX + 1):
        offers.withholding.arrived(SimpleNamespace(lora_id=f"{number}"))  # type: ignore[arg-type]
    assert offers.compute(TEXT, extra_key="a client's own") == [True]
    assert offers.compute(TEXT) == [False]


def test_pages_of_items_and_what_stands_on_them_are_withheld(offers: Offers) -> None:
    """An item is a number of 30 bits there; the text before it is offered."""
    assert offers.compute(ITEM[:PAGE]) == [False]
    assert offers.compute(ITEM[: 2 * PAGE], first=PAGE)[-2:] == [False, True]
    assert offers.compute(ITEM, first=2 * PAGE)[-2:] == [True, True]
