"""Loads that are made: what prompts share, how popular they are, when they come, and what is refused."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import SectionType
from ghostcacher_simulator.load.generated import KINDS, Agents, Chat, Documents, Rag, make_load, parse_made
from ghostcacher_simulator.load.requests import Load

BLOCK = 64


def leading(load: Load, blocks: int) -> Counter[tuple[bytes, ...]]:
    return Counter(request.prompt.blocks[:blocks] for request in load.requests)


@pytest.mark.parametrize("kind", KINDS)
def test_load_is_as_long_as_asked_in_order_and_alike_for_a_seed(kind: str) -> None:
    made = KINDS[kind](requests=300, rate=10.0)
    load, again, other = (make_load(made, seed=seed, block_tokens=BLOCK) for seed in (5, 5, 6))
    assert load == again != other
    arrivals = [request.arrival_s for request in load.requests]
    assert len(arrivals) == 300
    assert arrivals == sorted(arrivals)
    assert arrivals[0] == 0.0
    assert len({request.request_id for request in load.requests}) == 300


@pytest.mark.parametrize("kind", KINDS)
def test_sections_cover_the_prompt_in_order_and_blocks_are_its_whole_ones(kind: str) -> None:
    for request in make_load(KINDS[kind](requests=100), block_tokens=BLOCK).requests:
        ends = [end for _, end in request.section_ends]
        assert ends == sorted(set(ends))
        assert ends[-1] == request.prompt.tokens
        assert request.section_ends[-1][0] is SectionType.USER
        assert len(request.prompt.blocks) == request.prompt.tokens // BLOCK
        assert len(request.text()) == 4 * request.prompt.tokens
        assert request.text_sections()[-1] == (SectionType.USER, 4 * request.prompt.tokens)


def test_questions_share_their_document_alone() -> None:
    load = make_load(Documents(requests=40, documents=3, tokens=4 * BLOCK), block_tokens=BLOCK)
    assert len(leading(load, 4)) == 3
    assert len({request.text() for request in load.requests}) == 40
    assert len(leading(load, 5)) == 40


def test_popularity_is_zipfs() -> None:
    """With exponent 1 the first of 50 documents is asked for in one of 4.5 requests; with 0 in one of 50."""
    for zipf, share in ((1.0, 1 / 4.499), (0.0, 1 / 50)):
        load = make_load(Documents(requests=4_000, documents=50, tokens=BLOCK, zipf=zipf), block_tokens=BLOCK)
        ((_, most),) = leading(load, 1).most_common(1)
        assert most / 4_000 == pytest.approx(share, rel=0.5)
        assert (most > 600) == (zipf > 0)


def test_arrivals_come_at_the_rate() -> None:
    load = make_load(Documents(requests=4_000, rate=20.0))
    assert 4_000 / load.duration_s == pytest.approx(20.0, rel=0.1)


def test_every_turn_begins_with_the_one_before() -> None:
    """The history of a conversation only grows; what came as a message is history afterwards."""
    load = make_load(Chat(requests=200, turns=6, rules=2 * BLOCK, pause=10.0), block_tokens=BLOCK)
    talks: dict[str | None, list[int]] = {}
    for place, request in enumerate(load.requests):
        talks.setdefault(request.session, []).append(place)
    longest = max(talks.values(), key=len)
    assert len(longest) > 3
    for before, after in pairwise(longest):
        earlier, later = load.requests[before].prompt, load.requests[after].prompt
        assert later.blocks[: len(earlier.blocks)] == earlier.blocks
        assert later.tokens > earlier.tokens
    assert len(leading(load, 2)) == 1
    last = load.requests[longest[-1]]
    assert [kind for kind, _ in last.section_ends] == [SectionType.SYS, SectionType.SESSION, SectionType.USER]


def test_agents_of_a_kind_share_their_tools() -> None:
    load = make_load(Agents(requests=300, kinds=3, tools=10 * BLOCK), block_tokens=BLOCK)
    assert 1 < len(leading(load, 10)) <= 3
    assert load.requests[0].section_ends[0] == (SectionType.TOOLS, 10 * BLOCK)


def test_retrieved_passages_are_different_ones_behind_the_rules() -> None:
    made = Rag(requests=100, passages=30, found=4, tokens=BLOCK, rules=BLOCK, question=10)
    load = make_load(made, block_tokens=BLOCK)
    assert len(leading(load, 1)) == 1
    assert all(len(set(request.segments)) == 6 for request in load.requests)
    assert len(leading(load, 5)) > 50


def test_description_is_read_by_name() -> None:
    assert parse_made("chat") == Chat()
    assert parse_made("documents:documents=9,zipf=1.5,requests=7") == Documents(documents=9, zipf=1.5, requests=7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("books", "load: expected one of documents, rag, chat, agents, got 'books'"),
        ("chat:zipf=1", "load chat: expected name=value with a name of requests, rate, .*, got 'zipf=1'"),
        ("chat:turns", "load chat: expected name=value .*, got 'turns'"),
        ("rag:found=0", "load rag, found: expected `int` >= 1, got '0'"),
        ("rag:rate=fast", "load rag, rate: expected `float`, got `str`, got 'fast'"),
    ],
)
def test_wrong_description_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}$"):
        parse_made(text)
