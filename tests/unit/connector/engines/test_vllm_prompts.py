"""What a worker tells routers of its prompts: whose request it is, and which of its hashes."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.coordination.base import BOUNDARIES_MAX, PromptChain
from ghostcacher_connector.engines.vllm.scheduling.prompts import PromptReporter
from ghostcacher_connector.engines.vllm.scheduling.request_names import router_request_id
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked
from ghostcacher_connector.publish.prompt_chain import SAMPLE_TOKENS, sampled_counts
from tests.support.index_parts import chain

if TYPE_CHECKING:
    from vllm.v1.request import Request

UUID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"


@pytest.mark.parametrize("own", ["r1", UUID, UUID.replace("-", ""), "a-deadbeef", "x-0", "0_y", "with space", "-"])
@pytest.mark.parametrize(
    "form",
    ["cmpl-{}-0", "chatcmpl-{}", "embd-{}-0", "pooling-{}-0", "classify-{}-0", "score-{}-0", "generate-tokens-{}"],
)
def test_router_id_is_found_in_every_form(form: str, own: str) -> None:
    """Whatever vLLM puts around an id comes off, and nothing of it with it; of several samples, the first counts."""
    made = form.format(own)
    assert router_request_id(f"{made}-0a1b2c3d") == own
    assert router_request_id(f"0_{made}-0a1b2c3d") == own
    assert router_request_id(f"1_{made}-0a1b2c3d") is None
    assert router_request_id(made, unique=False) == own


def test_request_to_responses_is_named_by_its_answer() -> None:
    """The first of the turns that vLLM makes of it counts."""
    assert router_request_id("resp_0123456789abcdef_0-0a1b2c3d") == "resp_0123456789abcdef"
    assert router_request_id("resp_clients-own_0_0-0a1b2c3d") == "resp_clients-own_0"
    assert router_request_id("resp_0123456789abcdef_0", unique=False) == "resp_0123456789abcdef"


@pytest.mark.parametrize(
    "request_id",
    [
        "",
        "0",
        "cmpl-",
        "cmpl--0-0a1b2c3d",
        "cmpl-r1-1-0a1b2c3d",
        "cmpl-r1-0",
        "chatcmpl-r1",
        "chatcmpl-r1-0A1B2C3D",
        "chatcmpl--0a1b2c3d",
        "resp_0123456789abcdef_1-0a1b2c3d",
        "resp__0",
        f"chatcmpl-{'x' * 257}-0a1b2c3d",
    ],
)
def test_other_ids_are_nobodys(request_id: str) -> None:
    """A later prompt of several, an id without vLLM's own parts, or one too long, is not reported."""
    assert router_request_id(request_id) is None


@given(full_blocks=st.integers(0, 3_000_000), block_tokens=st.sampled_from([1, 8, 16, 64, 128, 256]))
def test_samples_rise_evenly_from_the_first_to_the_last_block(full_blocks: int, block_tokens: int) -> None:
    """First and last full block are in, no two samples lie further apart than they may, and there is a bound."""
    counts = sampled_counts(full_blocks, block_tokens)
    assert bool(counts) == (full_blocks > 0)
    assert len(counts) <= BOUNDARIES_MAX
    if counts:
        assert (counts[0], counts[-1]) == (1, full_blocks)
        gaps = [later - earlier for earlier, later in pairwise(counts)]
        stride = max(1, SAMPLE_TOKENS // block_tokens, full_blocks // (BOUNDARIES_MAX - 2) + 1)
        assert all(0 < gap <= stride for gap in gaps)


def test_one_hash_for_128_tokens() -> None:
    """The samples of a prompt of 40 blocks of 16 tokens."""
    assert sampled_counts(40, 16) == (1, 8, 16, 24, 32, 40)
    assert sampled_counts(3, 128) == (1, 2, 3)


class Sink:
    """Notes what it is told."""

    def __init__(self, *, listening: bool = True) -> None:
        self.listening = listening
        self.chains: list[PromptChain] = []

    def chain(self, chain: PromptChain) -> None:
        self.chains.append(chain)

    def computed(self, request: str) -> None:
        raise AssertionError(f"{request} has not been computed")


def tracked(**fields: object) -> Tracked:
    """Return a request as far as its arrival goes."""
    request = {
        "request_id": "chatcmpl-r1-0a1b2c3d",
        "num_prompt_tokens": 50,
        "block_hashes": chain(3),
        "lora_request": None,
        "mm_features": [],
        "prompt_embeds": None,
        "resumable": False,
    }
    return Tracked(cast("Request", SimpleNamespace(**(request | fields))))


def test_chain_of_a_new_request_is_told() -> None:
    """Three full blocks and a part of a fourth: their counts, their hashes, and the tokens of all of it."""
    sink = Sink()
    PromptReporter(sink, 16).arrived(tracked())
    assert sink.chains == [PromptChain("r1", 50, (1, 3), (chain(3)[0], chain(3)[2]))]


@pytest.mark.parametrize(
    "fields",
    [{"lora_request": "adapter"}, {"resumable": True}],
)
def test_prompt_whose_hashes_mean_something_else_elsewhere_is_not_told(fields: dict[str, object]) -> None:
    """What cannot be shared cannot be routed by."""
    sink, request = Sink(), tracked(**fields)
    PromptReporter(sink, 16).arrived(request)
    assert not sink.chains
    assert request.reported_as is None


def test_nobody_listens_nothing_is_prepared() -> None:
    """Without a router a request is not even looked at."""
    sink, request = Sink(listening=False), Tracked(cast("Request", None))
    PromptReporter(sink, 16).arrived(request)
    assert not sink.chains
