"""What a request's id tells of the parts of its prompt."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ghostcacher_connector.core.coordination.base import REQUEST_CHARS_MAX
from ghostcacher_connector.core.sections import (
    AGENT_BYTES,
    ENDS_MAX,
    HINT_CHARS_MAX,
    NO_SECTIONS,
    RETAIN_S_MAX,
    TOOLS_TAG_BYTES,
    USER_TOKENS_MAX,
    Hint,
    SectionEnd,
    block_sections,
    decode_hint,
    encode_hint,
    retain_wanted,
    session_tag,
    tools_tag,
    with_tags,
)
from ghostcacher_connector.core.types import SectionType

TOOLS, SYS, DOC, SESSION, USER = SectionType

CLIENT_ID_CHARS_MAX = 128
TAG = session_tag("alice", 7)
TOOLS_TAG = tools_tag(b"You are helpful.", b"[search]", 7)


def ends_strategy() -> st.SearchStrategy[list[SectionEnd]]:
    sizes = st.lists(st.integers(1, 1 << 22), min_size=1, max_size=ENDS_MAX)
    marks = st.sampled_from([0, 0, 0, 300, 3600])
    return sizes.flatmap(
        lambda counts: st.builds(
            lambda types, kept: [SectionEnd(*each) for each in zip(types, accumulate(counts), kept, strict=True)],
            st.lists(st.sampled_from(SectionType), min_size=len(counts), max_size=len(counts)),
            st.lists(marks, min_size=len(counts), max_size=len(counts)),
        )
    )


def type_at(ends: list[SectionEnd], byte: int) -> SectionType:
    return next(section for section, end, _ in ends if byte < end)


def kept_at(ends: list[SectionEnd], byte: int) -> int:
    return max(retain_s for _, end, retain_s in ends if byte < end)


@given(ends=ends_strategy())
@example(ends=[SectionEnd(USER, 10, 300)])
def test_hint_says_of_every_byte_what_was_meant(ends: list[SectionEnd]) -> None:
    """Runs of one type are joined, except where something is to be kept; an id never grows too long to be reported."""
    hint = encode_hint(ends)
    assert len(hint) <= HINT_CHARS_MAX
    tagged = with_tags(with_tags(hint, tools=TOOLS_TAG), session=TAG)
    assert len(tagged) <= HINT_CHARS_MAX
    assert len("x" * CLIENT_ID_CHARS_MAX + tagged) <= REQUEST_CHARS_MAX
    assert decode_hint("gc-1" + tagged) == (decode_hint("gc-1" + hint).ends, TAG, TOOLS_TAG)
    assert decode_hint("gc-1" + with_tags(hint, session=TAG)).tools is None
    assert decode_hint("gc-1" + with_tags(hint, tools=TOOLS_TAG)).session is None
    assert with_tags(hint) == hint
    found = list(decode_hint("gc-1" + hint).ends)
    if not found:
        return
    assert found[-1].end == ends[-1].end
    for _, end, _ in ends:
        assert type_at(found, end - 1) == type_at(ends, end - 1)
        assert kept_at(found, end - 1) == kept_at(ends, end - 1)


def test_hint_of_a_chat_is_short() -> None:
    """Five sections and one mark: the example of the module's docstring."""
    ends = [SectionEnd(TOOLS, 0x3F2), SectionEnd(SYS, 0x9A0), SectionEnd(DOC, 0x1F40, 300), SectionEnd(USER, 0x1FC8)]
    assert encode_hint(ends) == ".gc1.T3f2S9a0D1f40r300U1fc8"


def test_prompt_of_which_nothing_is_known_gets_no_hint() -> None:
    """Plain text, token ids, and a chat of one message are one last turn, whatever is in them."""
    assert encode_hint([SectionEnd(USER, 9000)]) == ""
    assert encode_hint([SectionEnd(USER, 100), SectionEnd(USER, 9000)]) == ""
    assert encode_hint([]) == ""


def test_prompt_of_too_many_sections_gets_no_hint() -> None:
    """Rather none than one that leaves out where most of it belongs."""
    ends = [SectionEnd(DOC if number % 2 else SESSION, number + 1) for number in range(ENDS_MAX + 1)]
    assert encode_hint(ends[:ENDS_MAX])
    assert encode_hint(ends) == ""


@pytest.mark.parametrize(
    "request_id",
    [
        None,
        "",
        "gc-1",
        ".gc1.",
        "x.gc1.U",
        "x.gc1.i0123456789a",
        "x.gc1.i0123456789abc",
        "x.gc1.i0123456789aB",
        "x.gc1.i0123456789abS10U2f",
        "x.gc1.U10U9i0123456789ab",
        "x.gc1.U10k012345678",
        "x.gc1.U10k01234567890",
        "x.gc1.U10k012345678A",
        "x.gc1.U10i0123456789abk0123456789",
        "x.gc1.Q10",
        "x.gc1.u10",
        "x.gc1.S10U10",
        "x.gc1.S10U9",
        "x.gc1.U0",
        "x.gc1.S10U2f ",
        "x.gc1.S10U2f\n",
        "x.gc1.S10U2F",
        "x.gc1.S-1U2f",
        "x.gc1.S10r",
        "x.gc1.S10r1234567",
        "x.gc1.S10r\u0663",
        "x.gc1.S" + "f" * 11,
        "x.gc2.S10U2f",
        "x.gc1.S10U2f.tail",
        "x.gc1." + "".join(f"{'SU'[number % 2]}{number + 1:x}" for number in range(ENDS_MAX + 1)),
    ],
)
def test_malformed_hint_says_nothing(request_id: str | None) -> None:
    """Anybody may choose an id."""
    assert decode_hint(request_id) == Hint()


@given(text=st.text(st.sampled_from("TSDHUr0189af.gc \n"), max_size=60), tokens=st.integers(0, 1 << 20))
def test_hostile_hint_never_raises(text: str, tokens: int) -> None:
    """Whatever stands there, every block has a type."""
    sections = block_sections(decode_hint("x.gc1." + text), tokens, 16)
    for block in (0, 1, tokens // 16, 1 << 30):
        assert sections.section_of(block) in SectionType
        assert 0 <= sections.retain_s(block) <= RETAIN_S_MAX


def test_last_hint_counts() -> None:
    """A client's own id may look like one; the router's stands behind it."""
    assert decode_hint("mine.gc1.U7.gc1.S10U20") == Hint((SectionEnd(SYS, 16), SectionEnd(USER, 32)))


def types(ends: list[SectionEnd], tokens: int, block_tokens: int) -> str:
    sections = block_sections(Hint(tuple(ends)), tokens, block_tokens)
    return "".join(sections.section_of(block).name[0] for block in range(tokens // block_tokens))


def test_blocks_are_shared_out_in_proportion() -> None:
    """4 bytes a token, blocks of 16 tokens: a block in which a section ends belongs to the next one."""
    ends = [SectionEnd(TOOLS, 4 * 32), SectionEnd(SYS, 4 * 60), SectionEnd(DOC, 4 * 128), SectionEnd(USER, 4 * 160)]
    assert types(ends, 160, 16) == "TT" + "S" + "DDDDD" + "UU"
    assert types(ends, 320, 32) == "TT" + "S" + "DDDDD" + "UU"


def test_prompt_without_a_hint_is_a_document_but_for_its_last_block() -> None:
    """The block with the last token is computed for every request: it is never worth keeping."""
    assert types([], 64, 16) == "DDDU"
    assert types([], 65, 16) == "DDDD"
    assert types([], 15, 16) == ""


def test_long_last_turn_is_a_document_but_for_its_last_block() -> None:
    """A short one is a question."""
    short = [SectionEnd(SYS, 64), SectionEnd(USER, 64 + USER_TOKENS_MAX)]
    assert types(short, 64 + USER_TOKENS_MAX, 64) == "S" + "U" * (USER_TOKENS_MAX // 64)
    tokens = 64 + USER_TOKENS_MAX + 64
    assert types([SectionEnd(SYS, 64), SectionEnd(USER, tokens)], tokens, 64) == "S" + "D" * 8 + "U"


def test_answer_is_session() -> None:
    """It is the history of the next turn."""
    sections = block_sections(Hint((SectionEnd(SYS, 10), SectionEnd(USER, 20))), 32, 16)
    assert [sections.section_of(block).name for block in range(4)] == ["SYS", "USER", "SESSION", "SESSION"]


def test_mark_keeps_all_before_it() -> None:
    """The longest time counts that is asked for at or behind a block, and what is asked for the whole request."""
    ends = [SectionEnd(SYS, 32, 300), SectionEnd(DOC, 64, 3600), SectionEnd(SESSION, 96, 300), SectionEnd(USER, 128)]
    sections = block_sections(Hint(tuple(ends)), 128, 16)
    assert [sections.retain_s(block) for block in range(9)] == [3600] * 4 + [300] * 2 + [0] * 3
    whole = block_sections(Hint(tuple(ends)), 128, 16, 600.0)
    assert [whole.retain_s(block) for block in range(9)] == [3600] * 4 + [600] * 4 + [0]


@pytest.mark.parametrize("value", [None, "300", True, -1, math.nan, math.inf, [300], {}])
def test_bad_retention_is_none(value: object) -> None:
    """It came from a client's body."""
    assert retain_wanted(value) is None


def test_retention_is_bounded() -> None:
    """A week; an integer of any size is one."""
    assert [retain_wanted(value) for value in (0, 0.5, 300, 1 << 20, 10**400)] == [
        0.0,
        0.5,
        300.0,
        RETAIN_S_MAX,
        RETAIN_S_MAX,
    ]


def test_tag_is_one_sessions_under_one_seed() -> None:
    """It is all that an engine's log shows of a name that a client chose."""
    names = ["alice", "bob", "", "a" * 256, "\ud800"]
    assert len({session_tag(name, seed) for name in names for seed in (7, 8)}) == 2 * len(names)
    assert session_tag("alice", 7) == session_tag("alice", 7 + (1 << 64)) == TAG


@pytest.mark.parametrize(
    ("ends", "first"),
    [
        ((), 0),
        ((SectionEnd(USER, 100),), 0),
        ((SectionEnd(SYS, 50), SectionEnd(USER, 100)), 5),
        ((SectionEnd(SYS, 25), SectionEnd(SESSION, 50), SectionEnd(USER, 100)), 2),
        ((SectionEnd(TOOLS, 10), SectionEnd(SYS, 25), SectionEnd(DOC, 80), SectionEnd(USER, 100)), 8),
    ],
)
def test_what_comes_after_what_sessions_share_belongs_to_the_session(ends: tuple[SectionEnd, ...], first: int) -> None:
    """A whole prompt of which nothing else is known; the answer, too."""
    sections = block_sections(Hint(ends, TAG), 160, 16)
    assert [block for block in range(12) if sections.session_of(block) == TAG] == list(range(first, 12))
    assert block_sections(Hint(ends), 160, 16).session_of(9) is None


def test_tag_of_tools_tells_system_texts_and_tools_apart() -> None:
    """The first bytes are those of the system text alone; under another seed all is another."""
    assert len(TOOLS_TAG) == TOOLS_TAG_BYTES
    same_agent = tools_tag(b"You are helpful.", b"[search, mail]", 7)
    other_agent = tools_tag(b"You are terse.", b"[search]", 7)
    assert (same_agent[:AGENT_BYTES], same_agent != TOOLS_TAG) == (TOOLS_TAG[:AGENT_BYTES], True)
    assert (other_agent[AGENT_BYTES:], other_agent != TOOLS_TAG) == (TOOLS_TAG[AGENT_BYTES:], True)
    assert tools_tag(b"You are helpful.", b"[search]", 8) != TOOLS_TAG


def test_request_knows_the_tag_of_its_tools() -> None:
    """Whatever else is known of it."""
    assert block_sections(Hint((), tools=TOOLS_TAG), 160, 16).tools == TOOLS_TAG
    assert block_sections(Hint((), TAG), 160, 16).tools is None
    assert NO_SECTIONS.tools is NO_SECTIONS.session is None


@pytest.mark.parametrize(
    ("ends", "front"),
    [
        ((), 0),
        ((SectionEnd(TOOLS, 50), SectionEnd(SYS, 70), SectionEnd(USER, 100)), 7),
        ((SectionEnd(SYS, 35), SectionEnd(USER, 100)), 3),
        ((SectionEnd(DOC, 35), SectionEnd(SYS, 70), SectionEnd(USER, 100)), 0),
    ],
)
def test_front_of_a_prompt_is_its_tools_and_system_text(ends: tuple[SectionEnd, ...], front: int) -> None:
    """In full blocks; what comes later, whatever it is called, is no front."""
    assert block_sections(Hint(ends), 160, 16).front == front
