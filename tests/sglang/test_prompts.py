"""Which router's request a request is, and when its prompt counts as computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ghostcacher_connector.core.coordination.base import REQUEST_CHARS_MAX, PromptChain
from ghostcacher_connector.engines.sglang.scheduling.prompts import (
    WAITING_AT_MAX,
    WAITING_MAX,
    PromptReporter,
)
from ghostcacher_connector.engines.sglang.scheduling.request_names import router_request_id
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked

PAGE = 16


class Sink:
    """Takes down what routers would be told."""

    def __init__(self, *, listening: bool = True) -> None:
        self.listening = listening
        self.chains: list[PromptChain] = []
        self.done: list[str] = []

    def chain(self, chain: PromptChain) -> None:
        self.chains.append(chain)

    def computed(self, request: str) -> None:
        self.done.append(request)


def request(rid: str, blocks: int = 2, *, finished: bool = False, output_ids: tuple[int, ...] = ()) -> Tracked:
    req: Any = SimpleNamespace(
        rid=rid, origin_input_ids=range(blocks * PAGE + 3), finished=lambda: finished, output_ids=output_ids
    )
    return Tracked(req, [bytes([number]) * 32 for number in range(blocks)], pullable=blocks)


@pytest.mark.parametrize(
    ("rid", "name"),
    [
        ("gc-1-0123abcd", "gc-1"),
        ("gc-1-0123abcd_0", "gc-1"),
        ("gc-1-0123abcd_1", None),
        ("gc-1", None),
        ("-0123abcd", None),
        ("0123456789abcdef0123456789abcdef", None),
        ("resp_0123456789abcdef0123456789abcdef", "resp_0123456789abcdef0123456789abcdef"),
        ("resp_0123456789abcdef0123456789abcdef_0", None),
        ("resp_gc-1-0123abcd", "resp_gc-1"),
        ("x" * REQUEST_CHARS_MAX + "-0123abcd", "x" * REQUEST_CHARS_MAX),
        ("x" * (REQUEST_CHARS_MAX + 1) + "-0123abcd", None),
    ],
)
def test_router_id_is_taken_out_of_the_engines(rid: str, name: str | None) -> None:
    """The unique end is cut off; of several prompts the first is meant; ids of others are none."""
    assert router_request_id(rid) == name


def test_prompt_is_reported_once_when_its_last_page_is_published() -> None:
    """The chain when it arrives, the end when the last full page is in the index."""
    sink, held = Sink(), set[bytes]()
    reporter = PromptReporter(sink, held.__contains__, PAGE)
    tracked = request("r-0123abcd")
    reporter.arrived(tracked)
    assert [chain.request for chain in sink.chains] == ["r"]
    reporter.published(tracked.chain[0])
    reporter.computed(tracked)
    assert sink.done == []
    reporter.published(tracked.chain[1])
    reporter.published(tracked.chain[1])
    assert sink.done == ["r"]


def test_prompt_whose_pages_were_here_is_reported_when_it_has_run() -> None:
    """Nothing new is published for a prompt that is wholly in the cache."""
    sink, held = Sink(), set[bytes]()
    reporter = PromptReporter(sink, held.__contains__, PAGE)
    tracked = request("r-0123abcd")
    held.add(tracked.chain[-1])
    reporter.arrived(tracked)
    reporter.computed(tracked)
    assert sink.done == ["r"]


@pytest.mark.parametrize(("finished", "output_ids", "told"), [(True, (7,), ["r"]), (True, (), []), (False, (7,), [])])
def test_only_a_request_that_has_answered_is_reported_after_its_end(
    finished: bool, output_ids: tuple[int, ...], told: list[str]
) -> None:
    """Pages of a request are published a pass after its end; an aborted one may never have computed them."""
    sink = Sink()
    reporter = PromptReporter(sink, lambda _: False, PAGE)
    tracked = request("r-0123abcd", finished=finished, output_ids=output_ids)
    reporter.arrived(tracked)
    reporter.ended(tracked)
    reporter.published(tracked.chain[-1])
    assert sink.done == told


def test_requests_that_wait_for_one_page_are_bounded() -> None:
    """Of very many requests with one prompt, as many as are kept are reported; no other one is kept."""
    sink = Sink()
    reporter = PromptReporter(sink, lambda _: False, PAGE)
    tracked = [request(f"r{number}-0123abcd") for number in range(WAITING_AT_MAX + 1)]
    for one in tracked:
        reporter.arrived(one)
    reporter.published(tracked[0].chain[-1])
    assert sink.done == [f"r{number}" for number in range(WAITING_AT_MAX)]
    assert tracked[-1].reported_as is None


def test_prompt_with_an_adapter_is_not_reported() -> None:
    """A router would take it for the same text without."""
    sink = Sink()
    reporter = PromptReporter(sink, lambda _: False, PAGE)
    tracked = request("r-0123abcd")
    tracked.adapted = True
    reporter.arrived(tracked)
    assert sink.chains == []
    assert tracked.reported_as is None


def test_nobody_listens_nothing_is_kept() -> None:
    """Without a router a prompt costs one look at an attribute."""
    sink = Sink(listening=False)
    reporter = PromptReporter(sink, lambda _: False, PAGE)
    tracked = request("r-0123abcd")
    reporter.arrived(tracked)
    assert tracked.reported_as is None
    assert sink.chains == []


def test_prompts_that_are_never_published_are_bounded() -> None:
    """The oldest are forgotten."""
    reporter = PromptReporter(Sink(), lambda _: False, PAGE)
    for number in range(WAITING_MAX + 5):
        tracked = request("r-0123abcd", 1)
        tracked.chain = [number.to_bytes(32, "big")]
        reporter.arrived(tracked)
    assert len(reporter._waiting) == WAITING_MAX
