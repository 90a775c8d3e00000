"""Where boundaries lie, and what their digests depend on."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.prompt.boundaries import PART_BYTES_MIN, hash_prompt
from ghostcacher_router.types import GRID_BYTES, Prompt

SEED = 7
LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=12)


def hashed(
    text: bytes, part_ends: list[int], section: SectionType = SectionType.USER, preamble: bytes = b"p"
) -> Prompt:
    prompt = hash_prompt(text, part_ends, [(section, len(text))], preamble=preamble, seed=SEED)
    assert prompt is not None
    return prompt


def text_of(lengths: list[int], salt: int = 0) -> bytes:
    return b"".join(bytes([(index + salt) % 251]) * length for index, length in enumerate(lengths))


def ends_of(lengths: list[int]) -> list[int]:
    return [sum(lengths[: index + 1]) for index in range(len(lengths))]


def boundaries(prompt: Prompt) -> dict[int, bytes]:
    return dict(zip(prompt.ends, prompt.digests, strict=True))


def test_digest_is_of_the_preamble_and_all_bytes_before() -> None:
    """A boundary is XXH3-128 of what precedes it under the fleet's seed: a published value, equal in all routers."""
    text = text_of([300, 1500, 700])
    for end, digest in boundaries(hashed(text, ends_of([300, 1500, 700]))).items():
        assert digest == xxh3_128_digest(b"p" + text[:end], SEED)


def test_boundaries_lie_at_every_kib_at_parts_and_at_the_end() -> None:
    """The grid is counted from the first byte, whatever lies over it."""
    assert hashed(bytes(2500), [300, 1500, 2500]).ends == [300, 1024, 1500, 2048, 2500]


def test_empty_text_is_no_prompt() -> None:
    """Nothing is prefilled, so there is nothing to route by."""
    assert hash_prompt(b"", (), (), preamble=b"p", seed=SEED) is None


def test_tiny_parts_have_few_boundaries() -> None:
    """A thousand tiny messages cost no more boundaries than the same text in one piece, times eight."""
    size = 64 * GRID_BYTES
    ends = hashed(bytes(size), list(range(8, size + 1, 8))).ends
    assert len(ends) <= size // PART_BYTES_MIN + 2
    assert len(ends) == len(set(ends))


@given(LENGTHS, LENGTHS, st.integers(0, 12))
def test_shared_parts_share_every_boundary(mine: list[int], other: list[int], shared: int) -> None:
    """Two prompts have the same boundaries in the text that they share, whatever sections lie over it and follow."""
    one, two = mine[:shared] + mine[shared:], mine[:shared] + other
    text_one = text_of(one)
    text_two = text_of(mine[:shared]) + text_of(other, salt=100)
    common = sum(mine[:shared])
    first = boundaries(hashed(text_one, ends_of(one), SectionType.USER))
    second = boundaries(hashed(text_two, ends_of(two), SectionType.SESSION))
    forced = {len(text_one), len(text_two)}
    assert {k: v for k, v in first.items() if k <= common and k not in forced} == {
        k: v for k, v in second.items() if k <= common and k not in forced
    }


@given(st.binary(min_size=1, max_size=5000), st.integers(0, 4999), st.integers(1, 255))
def test_one_changed_byte_changes_every_boundary_after_it(text: bytes, at: int, flip: int) -> None:
    """Boundaries before a difference are equal, those after it are not."""
    at %= len(text)
    changed = text[:at] + bytes([text[at] ^ flip]) + text[at + 1 :]
    one, two = hashed(text, []), hashed(changed, [])
    for end, mine, other in zip(one.ends, one.digests, two.digests, strict=True):
        assert (mine == other) == (end <= at)


@given(LENGTHS, LENGTHS)
def test_growth_keeps_all_boundaries_but_the_end(before: list[int], added: list[int]) -> None:
    """A conversation that grows keeps its boundaries; only its own end may lie too close to another to stay."""
    grown = before + added
    short = boundaries(hashed(text_of(before), ends_of(before)))
    long = boundaries(hashed(text_of(grown), ends_of(grown)))
    lost = set(short.items()) - set(long.items())
    assert lost <= {(sum(before), short[sum(before)])}
    assert all(sum(before) - max(end for end in long if end < sum(before)) < PART_BYTES_MIN for _ in lost)


@given(st.lists(st.sampled_from(SectionType), min_size=1, max_size=6), st.integers(1, 3000))
def test_prompt_is_well_formed(types: list[SectionType], length: int) -> None:
    """Ends ascend, the last one is the text's; each section ends at the boundary that it names."""
    text = bytes(length * len(types))
    sections = [(section, length * (index + 1)) for index, section in enumerate(types)]
    prompt = hash_prompt(text, (), sections, preamble=b"", seed=SEED)
    assert prompt is not None
    assert all(one < two for one, two in pairwise(prompt.ends))
    assert prompt.size == len(text)
    assert [(section, prompt.ends[index]) for section, index in prompt.section_ends] == sections


def test_preamble_and_seed_change_every_digest_and_no_position() -> None:
    """What is not text has no bytes in the prompt."""
    text = text_of([1000, 1000])
    one, two = hashed(text, [1000, 2000]), hashed(text, [1000, 2000], preamble=b"q")
    three = hash_prompt(text, [1000, 2000], [(SectionType.USER, 2000)], preamble=b"p", seed=SEED + 1)
    assert three is not None
    assert one.ends == two.ends == three.ends
    assert len({*one.digests, *two.digests, *three.digests}) == 3 * len(one.ends)


def test_prefix_key_is_of_system_tools_and_documents() -> None:
    """SHA256(H_sys || sep || H_tools || sep || H_doc), where H is the digest at the end of a type's last section."""
    sections = [(SectionType.TOOLS, 100), (SectionType.SYS, 200), (SectionType.DOC, 300), (SectionType.USER, 400)]
    prompt = hash_prompt(text_of([100] * 4), (), sections, preamble=b"", seed=SEED)
    assert prompt is not None
    tools, system, doc = prompt.digests[:3]
    assert prompt.prefix_key == sha256(b"\0".join((system, tools, doc))).digest()


@pytest.mark.parametrize("late", [SectionType.DOC, SectionType.SYS])
def test_prefix_key_ignores_what_follows_the_first_turn(late: SectionType) -> None:
    """A document in the midst of a conversation is no part of its prefix."""
    keys = set()
    for last in (SectionType.USER, late):
        sections = [(SectionType.SYS, 100), (SectionType.USER, 200), (last, 300)]
        prompt = hash_prompt(text_of([300]), (), sections, preamble=b"", seed=SEED)
        assert prompt is not None
        keys.add(prompt.prefix_key)
    assert len(keys) == 1


@pytest.mark.parametrize("length", [300, 1024, 5000])
def test_prefix_key_of_untyped_text_is_of_its_first_kib(length: int) -> None:
    """Texts that begin alike for a KiB have one affinity, however they end."""
    prompt = hashed(bytes(length), [])
    assert prompt.prefix_key == sha256(xxh3_128_digest(b"p" + bytes(min(length, 1024)), SEED)).digest()
