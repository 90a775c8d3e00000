"""What pages are called in the fleet, told by SGLang's own tree, requests and adapters."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.lora.lora import LoRAAdapter
from sglang.srt.lora.lora_config import LoRAConfig
from sglang.srt.managers.schedule_batch import MM_PAD_SHIFT_VALUE
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import UnifiedCacheLinkerWrapper

from ghostcacher_connector.core.types import BlockHash
from ghostcacher_connector.engines.sglang import hooks
from ghostcacher_connector.engines.sglang.scheduling import adapters as adapters_module
from ghostcacher_connector.engines.sglang.scheduling.adapters import Adapters
from ghostcacher_connector.engines.sglang.scheduling.matching import common_pages, page_of
from ghostcacher_connector.engines.sglang.scheduling.page_names import offered_names, plain_names
from ghostcacher_connector.engines.sglang.scheduling.rank_group import RankGroup
from ghostcacher_connector.engines.sglang.scheduling.requests import track
from tests.sglang.loading_rig import PAGE, Rig
from tests.sglang.test_sections import request as arriving

ADAPTER, OTHER = "6f" * 16, "7a" * 16
TEXT = array("q", range(4 * PAGE))
ITEM = array("q", [*range(PAGE), MM_PAD_SHIFT_VALUE + 77, *range(PAGE + 1, 4 * PAGE)])


def adapter(value: float, *, alpha: int = 16) -> LoRAAdapter:
    """Return one of SGLang's adapters with a layer full of a number."""
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": alpha, "target_modules": ["q_proj"], "bias": "none"}
    shape: Any = SimpleNamespace(num_hidden_layers=2, hidden_size=16, vocab_size=128)
    parts: Any = None
    made = LoRAAdapter("a", LoRAConfig.from_dict(config, base_vocab_size=128), shape, parts, parts)
    for layer in made.layers:
        layer.weights = {"q_proj.lora_A.weight": torch.full((8, 16), value)}
    return made


def scheduler(**loaded: LoRAAdapter) -> Any:
    """Return as much of SGLang's scheduler as has these adapters."""
    manager = SimpleNamespace(loras=dict(loaded.items()))
    return SimpleNamespace(tp_worker=SimpleNamespace(model_runner=SimpleNamespace(lora_manager=manager)))


def req(lora_id: str | None, extra_key: str = "") -> Any:
    """Return a request as SGLang makes it: the adapter's id stands behind the client's own key."""
    return arriving("r", lora_id=lora_id, extra_key=(extra_key + (lora_id or "")) or None)


def known(value: float = 1.0, number: str = ADAPTER, ranks: Any = None) -> Adapters:
    """Return what is known after a request for an adapter has come."""
    found = Adapters(ranks or RankGroup(None))
    found.arrived(scheduler(**{number: adapter(value)}), req(number))
    return found


class Offers:
    """What is offered of SGLang's tree, and what that is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig = Rig()
        self.adapters = Adapters(RankGroup(None))
        self.seen: list[list[BlockHash] | None] = []
        hooked: Any = SimpleNamespace(node_offered=self._offered)
        monkeypatch.setattr(hooks, "_linker", hooked)
        offer = UnifiedCacheLinkerWrapper._offload_node

        def hooked_offer(wrapper: Any, node: Any, transfers: Any) -> None:
            hooks.node_offered(wrapper, node)
            offer(wrapper, node, transfers)

        monkeypatch.setattr(UnifiedCacheLinkerWrapper, "_offload_node", hooked_offer)

    def _offered(self, cache: Any, node: Any) -> None:
        self.seen.append(offered_names(cache.tree_core, node, self.adapters, PAGE))

    def compute(self, tokens: array[int], *, first: int = 0, extra_key: str | None = None) -> list[BlockHash] | None:
        """Enter tokens into the tree behind the first so many, which are there; return the names that they get."""
        places = self.rig.allocator.alloc(len(tokens))
        key = RadixKey(tokens, extra_key=extra_key)
        self.rig.tree.insert(InsertParams(key=key, value=places, prev_prefix_len=first))
        seen, self.seen = self.seen, []
        return seen[-1]


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Offers]:
    made = Offers(monkeypatch)
    yield made
    made.rig.puller.close()


def test_text_has_sglangs_own_names(offers: Offers) -> None:
    offers.adapters = known()
    assert offers.compute(TEXT) == []
    assert offers.compute(TEXT, extra_key="a client's own") == []


@pytest.mark.parametrize("own", ["", "a client's own"])
def test_pages_of_an_adapter_are_offered_as_they_are_looked_for(offers: Offers, own: str) -> None:
    """By its content and the hash without it, whatever SGLang calls the adapter; the whole path in one name."""
    offers.adapters = known()
    assert offers.compute(TEXT[: 2 * PAGE], extra_key=own + ADAPTER) is not None
    names = offers.compute(TEXT, first=2 * PAGE, extra_key=own + ADAPTER)
    elsewhere = known(number=OTHER)
    asked = req(OTHER, own)
    asked.origin_input_ids = array("q", [*TEXT, 1])
    tracked = track(asked, PAGE, elsewhere.digest(OTHER))
    assert names == tracked.chain
    assert tracked.adapted
    assert names != plain_names(RadixKey(TEXT, extra_key=own or None), PAGE)
    # SGLang asks by its own names.
    own_names = plain_names(RadixKey(TEXT, extra_key=own + OTHER), PAGE)
    assert page_of(tracked, own_names[1].hex()) == 1
    assert common_pages(tracked, 0, [name.hex() for name in own_names]) == len(names)


def test_adapters_with_other_content_never_meet(offers: Offers) -> None:
    """Not each other's, not the model's alone, and not those with the same tensors and another scale."""
    digests = {known(1.0).digest(ADAPTER), known(2.0).digest(ADAPTER)}
    scaled = Adapters(RankGroup(None))
    scaled.arrived(scheduler(**{ADAPTER: adapter(1.0, alpha=32)}), req(ADAPTER))
    digests.add(scaled.digest(ADAPTER))
    assert len(digests) == 3
    assert None not in digests
    chains = [track(req(ADAPTER), PAGE, digest).chain for digest in digests if digest is not None]
    chains.append(track(req(None), PAGE).chain)
    assert len({chain[0] for chain in chains}) == len(chains)


@pytest.mark.parametrize("field", ["extra_key", "cache_salt"])
def test_clients_own_key_keeps_prompts_with_one_adapter_apart(field: str) -> None:
    """As it does without one."""
    digest = known().digest(ADAPTER)
    chains = []
    for own in ("", "one", "two"):
        asked = req(ADAPTER, own if field == "extra_key" else "")
        asked.cache_salt = own or None if field == "cache_salt" else None
        chains.append(track(asked, PAGE, digest).chain)
    assert len({chain[0] for chain in chains}) == len(chains)


def test_adapter_that_is_not_shared_has_no_names(offers: Offers) -> None:
    """Its requests ask for nothing, and what they compute is not offered."""
    offers.adapters.arrived(scheduler(), req(ADAPTER))
    assert offers.adapters.digest(ADAPTER) is None
    assert offers.compute(TEXT, extra_key=ADAPTER) is None
    assert track(req(ADAPTER), PAGE, offers.adapters.digest(ADAPTER)).chain == []


def test_client_whose_own_key_ends_with_an_id_ends_the_sharing_of_that_adapter(offers: Offers) -> None:
    """SGLang's tree has one path for both: pages of the model alone lie there from now on."""
    loaded = scheduler(**{ADAPTER: adapter(1.0), OTHER: adapter(1.0)})
    for number in (ADAPTER, OTHER):
        offers.adapters.arrived(loaded, req(number))
    offers.adapters.arrived(loaded, req(None, "x" + ADAPTER))
    assert offers.adapters.digest(ADAPTER) is None
    assert offers.adapters.digest(OTHER) is not None
    assert offers.compute(TEXT, extra_key="x" + ADAPTER) is None
    offers.adapters.arrived(loaded, req(ADAPTER))
    assert offers.adapters.digest(ADAPTER) is None


def test_client_may_come_before_any_request_for_the_adapter(offers: Offers) -> None:
    loaded = scheduler(**{ADAPTER: adapter(1.0)})
    offers.adapters.arrived(loaded, req(None, "x" + ADAPTER))
    offers.adapters.arrived(loaded, req(ADAPTER))
    assert offers.adapters.digest(ADAPTER) is None


def test_id_that_comes_to_mean_another_object_is_not_shared() -> None:
    found = known()
    found.arrived(scheduler(**{ADAPTER: adapter(1.0)}), req(None))
    assert found.digest(ADAPTER) is None


@pytest.mark.parametrize("other", [b"", b"d" * 32])
def test_ranks_have_to_have_read_the_same(other: bytes) -> None:
    ranks: Any = SimpleNamespace(gather=lambda own: [own, other])
    assert known(ranks=ranks).digest(ADAPTER) is None


def test_more_adapters_than_are_remembered_have_no_key_believed(
    offers: Offers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters_module, "ADAPTERS_MAX", 2)
    offers.adapters.arrived(scheduler(**{ADAPTER: adapter(1.0), OTHER: adapter(1.0)}), req(ADAPTER))
    assert offers.adapters.digest(ADAPTER) is None
    assert offers.compute(TEXT, extra_key="a client's own") is None
    assert offers.compute(TEXT) == []


def test_pages_of_items_and_what_stands_on_them_are_withheld(offers: Offers) -> None:
    """An item is a number of 30 bits there; the text before it is offered."""
    assert offers.compute(ITEM[:PAGE]) == []
    assert offers.compute(ITEM[: 2 * PAGE], first=PAGE) is None
    assert offers.compute(ITEM, first=2 * PAGE) is None
