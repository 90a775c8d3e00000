"""What the scheduler knows of LoRA adapters: a content, told alike by all ranks, or none that may be shared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.engines.common.adapter_content import adapted
from ghostcacher_connector.engines.vllm.scheduling import adapters
from ghostcacher_connector.engines.vllm.scheduling.adapters import AdapterBook, agreed

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

ONE, TWO = b"1" * 32, b"2" * 32


def lora(name: str = "n", path: str = "p", number: int = 1, *, in_place: bool = False) -> LoRARequest:
    fields = {"lora_name": name, "lora_path": path, "lora_int_id": number, "load_inplace": in_place}
    return cast("LoRARequest", SimpleNamespace(**fields))


def step(book: AdapterBook, number: int, told: dict[int, bytes], *uses: LoRARequest) -> None:
    """Have a step computed with these adapters. told: what all ranks say of them."""
    requests: list[Any] = [SimpleNamespace(lora_request=each) for each in uses]
    assert set(book.scheduled(number, requests)) == {each.lora_int_id for each in uses}
    book.computed(number, told)


def test_content_is_what_all_ranks_say_when_it_is_loaded() -> None:
    """Known before the first request; not, where they differ or one of them lacks it."""
    book = AdapterBook()
    book.loaded(lora(), [{1: ONE, 2: TWO}, {1: ONE}])
    book.loaded(lora("m", "q", 2), [{1: ONE, 2: TWO}, {1: ONE}])
    assert (book.adapter(lora()).digest, book.adapter(lora()).shared) == (ONE, True)
    assert book.adapter(lora("m", "q", 2)).digest is None


def test_content_is_learned_from_the_first_step_that_computes_with_it() -> None:
    """An adapter that nobody loaded beforehand."""
    book = AdapterBook()
    adapter = book.adapter(lora())
    step(book, 1, {1: ONE}, lora())
    assert (adapter.digest, adapter.shared) == (ONE, True)


@pytest.mark.parametrize("told", [{}, {1: TWO}, {2: ONE}])
def test_step_with_another_content_or_none_ends_sharing(told: dict[int, bytes]) -> None:
    """Also of other adapters with its name or its path, now and later."""
    book = AdapterBook()
    adapter, same_path, other = book.adapter(lora()), book.adapter(lora("m", "p", 5)), book.adapter(lora("o", "q", 6))
    step(book, 1, {1: ONE}, lora())
    step(book, 2, told, lora())
    assert [each.shared for each in (adapter, same_path, other)] == [False, False, True]
    assert not book.adapter(lora("n", "r", 7)).shared


def test_step_whose_own_report_is_lost_ends_sharing() -> None:
    """A later report says nothing of it: the adapter may have been another one meanwhile."""
    book = AdapterBook()
    adapter = book.adapter(lora())
    book.scheduled(1, [cast("Any", SimpleNamespace(lora_request=lora()))])
    step(book, 2, {1: ONE}, lora())
    assert not adapter.shared


@pytest.mark.parametrize("second", [lora("n", "q", 2), lora("m", "p", 2)])
def test_name_or_path_with_two_contents_is_not_shared(second: LoRARequest) -> None:
    """Whatever numbers vLLM has for them."""
    book = AdapterBook()
    book.loaded(lora(), [{1: ONE}])
    book.loaded(second, [{2: ONE}])
    assert book.adapter(lora()).shared
    book.loaded(lora(second.lora_name, second.lora_path, 3), [{3: TWO}])
    known = (second, lora(second.lora_name, "z", 9), lora("z", "z", 9))
    assert [book.adapter(each).shared for each in known] == [False, False, True]


def test_name_is_no_path() -> None:
    """An adapter may be called like another one's path."""
    book = AdapterBook()
    book.loaded(lora("x", "y"), [{1: ONE}])
    book.loaded(lora("y", "x", 2), [{2: TWO}])
    assert book.adapter(lora("x", "y")).shared
    assert book.adapter(lora("y", "x", 2)).shared


def test_reload_in_place_ends_sharing_even_when_no_rank_can_read_it() -> None:
    book = AdapterBook()
    book.loaded(lora(), [{1: ONE}])
    book.loaded(lora(in_place=True), [{}])
    assert not book.adapter(lora()).shared


def test_reset_of_the_cache_begins_anew_for_new_requests() -> None:
    """Those that have not ended may still hold blocks of before."""
    book = AdapterBook()
    running = book.adapter(lora())
    book.loaded(lora(in_place=True), [{1: TWO}])
    book.forget()
    step(book, 1, {1: TWO}, *[lora()] * bool(book.adapter(lora())))
    assert (book.adapter(lora()).digest, book.adapter(lora()).shared, running.shared) == (TWO, True, False)


def test_adapters_beyond_the_bound_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "ADAPTERS_MAX", 2)
    book = AdapterBook()
    found = [book.adapter(lora(f"n{number}", f"p{number}", number)).shared for number in range(1, 4)]
    assert found == [True, True, False]


@given(digests=st.lists(st.binary(min_size=32, max_size=32), unique=True), block=st.binary(min_size=16, max_size=32))
def test_block_is_called_otherwise_for_each_content_and_for_none(digests: list[bytes], block: bytes) -> None:
    """As long as the engine's hash."""
    names = {block, *(adapted(digest, block) for digest in digests)}
    assert len(names) == len(digests) + 1
    assert {len(name) for name in names} == {len(block)}


def test_ranks_agree_on_what_all_of_them_tell_alike() -> None:
    assert agreed([{1: ONE, 2: ONE, 3: ONE}, {1: ONE, 2: TWO}, {1: ONE, 2: ONE, 3: ONE}]) == {1: ONE}
    assert agreed([{}]) == {}
