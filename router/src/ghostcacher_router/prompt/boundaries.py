"""Places the boundaries of a prompt, and names them by digests.

A boundary at position p is named by the running XXH3-128 of all bytes before p, under the fleet's seed; what comes
after p has no part in it. Two prompts are to share every boundary of the text that they share. So whether there is a
boundary at p must not depend on what comes after p either:

- every KiB of the whole prompt, counted from its first byte, is a boundary, whatever sections lie over it: a turn that
  moves from USER to SESSION as the conversation grows keeps its boundaries;
- the end of a part (a message, say) is a boundary when none of these two kinds is within 128 bytes before it, which
  bounds the number of boundaries of a thousand tiny messages; the end of the first part always is one;
- the end of a section always is a boundary, and changes nothing in the two rules above. What comes after may decide
  whether a section ends there (a prompt's own end, an explicit breakpoint), so this is the one kind of boundary that
  another prompt may lack.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import NamedTuple

from xxhash import xxh3_128

from ghostcacher_connector.core.sections import SectionEnd, encode_hint, tools_tag, with_tags
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.types import GRID_BYTES, Prompt

PART_BYTES_MIN = 128
"""About 32 tokens, which is finer than the block counts that the connector reports."""

SEPARATOR = b"\x00"
NOTHING_RETAINED: Mapping[int, int] = MappingProxyType({})


class PromptText(NamedTuple):
    """A prompt in the order in which the engine's template uses it. The fields are those of `hash_prompt`."""

    text: bytes
    """What an engine prefills, in canonical form; the ids of tokens as 32-bit numbers of this machine."""
    part_ends: Sequence[int]
    """Where its parts end, such as messages."""
    section_ends: Sequence[tuple[SectionType, int]]
    """The type of each section, and where it ends."""
    preamble: bytes
    """What changes the engine's KV blocks from the first one on without being part of the text."""
    tokens: int | None = None
    """How many tokens it has, when it came as token ids."""
    retain_s: Mapping[int, int] = NOTHING_RETAINED
    """For how long the client wants all before the end of a section to be kept, by the section's place."""

    def hashed(self, seed: int) -> Prompt | None:
        """Return the prompt, hashed at its boundaries; None when it is empty."""
        return hash_prompt(
            self.text,
            self.part_ends,
            self.section_ends,
            preamble=self.preamble,
            seed=seed,
            tokens=self.tokens,
            retain_s=self.retain_s,
        )


def hash_prompt(
    text: bytes,
    part_ends: Sequence[int],
    section_ends: Sequence[tuple[SectionType, int]],
    *,
    preamble: bytes,
    seed: int,
    tokens: int | None = None,
    retain_s: Mapping[int, int] = NOTHING_RETAINED,
) -> Prompt | None:
    """Return the prompt, hashed at its boundaries; None when it is empty.

    part_ends, section_ends: positions in `text`, ascending, in ``(0, len(text)]``; the last section ends with the text.
    preamble: what changes the engine's KV blocks from the first one on without being part of the text; it is hashed
    before the text and counts in no position. seed: taken modulo 2**64. tokens: how many the prompt has, if known.
    retain_s: for how many seconds the client wants all before the end of a section to be kept, by the section's place.
    """
    if not text:
        return None
    ends = list(range(GRID_BYTES, len(text) + 1, GRID_BYTES))
    ends += _part_boundaries(part_ends)
    ends += [end for _, end in section_ends]
    ends.sort()
    ends = list(dict.fromkeys(ends))
    digests = _digests(text, ends, xxh3_128(preamble, seed))
    marks = [(section, bisect_left(ends, end)) for section, end in section_ends]
    told = [SectionEnd(section, end, retain_s.get(place, 0)) for place, (section, end) in enumerate(section_ends)]
    hint = with_tags(encode_hint(told), tools=tools_tag_of(text, section_ends, seed))
    return Prompt(ends, digests, marks, prefix_key(digests, marks), tokens, hint)


class Running:
    """The boundaries of a text that goes on, as far as what comes behind it cannot change them. Immutable.

    part_ends: where its parts end; the text ends with the last one. size: of the text.
    """

    __slots__ = ("_digests", "_ends", "_last", "_part_digests", "_state", "part_ends", "size")

    def __init__(self, state: xxh3_128) -> None:
        """state: that has hashed what comes before the text."""
        self._state = state
        self._ends: list[int] = []
        self._digests: list[bytes] = []
        self._last: int | None = None
        """The last end of a part that is a boundary for its own sake."""
        self._part_digests: list[bytes] = []
        self.part_ends: list[int] = []
        self.size = 0

    def __repr__(self) -> str:
        return f"Running(size={self.size}, boundaries={len(self._ends)})"

    def grown(self, text: bytes, part_ends: Sequence[int]) -> Running:
        """Return it with more behind it. part_ends: of the parts in `text`, as places in the whole; not empty."""
        parts = _part_boundaries(part_ends, self._last)
        ends = sorted({*self._grid(part_ends[-1]), *parts})
        state = self._state.copy()
        all_ends = sorted({*ends, *part_ends})
        found = dict(zip(all_ends, _digests(text, all_ends, state, self.size), strict=True))
        more = Running(state)
        more._ends = self._ends + ends
        more._digests = self._digests + [found[end] for end in ends]
        more._last = parts[-1] if parts else self._last
        more._part_digests = self._part_digests + [found[end] for end in part_ends]
        more.part_ends = self.part_ends + list(part_ends)
        more.size = part_ends[-1]
        return more

    def boundaries(
        self, text: bytes, part_ends: Sequence[int], section_ends: Sequence[tuple[SectionType, int]]
    ) -> tuple[list[int], list[bytes]]:
        """Return the ends and digests of the whole that ends with `text`, as `hash_prompt` does.

        section_ends: places in the whole, each of them the end of a part.
        """
        size = self.size
        inner: list[int] = []
        new: list[int] = []
        for _, end in section_ends:
            if end <= size:
                inner.append(end)
            else:
                new.append(end)
        if part_ends:
            new += _part_boundaries(part_ends, self._last)
            new += self._grid(part_ends[-1])
        if len(new) > 1:
            new = sorted(set(new))
        ends = self._ends + new
        digests = self._digests + _digests(text, new, self._state.copy(), size)
        for end in inner:
            place = bisect_left(ends, end)
            if place == len(ends) or ends[place] != end:
                ends.insert(place, end)
                digests.insert(place, self._part_digests[bisect_left(self.part_ends, end)])
        return ends, digests

    def _grid(self, size: int) -> range:
        """Return the boundaries that the grid has up to a size of the whole."""
        return range((self.size // GRID_BYTES + 1) * GRID_BYTES, size + 1, GRID_BYTES)


def tools_tag_of(text: bytes, section_ends: Sequence[tuple[SectionType, int]], seed: int) -> bytes | None:
    """Return the tag of a prompt's tools; None when it does not begin with any."""
    tools = system = 0
    for section, end in section_ends:
        if section > SectionType.SYS:
            break
        tools, system = (end if section is SectionType.TOOLS else tools), end
    return tools_tag(text[tools:system], text[:tools], seed) if tools else None


def _part_boundaries(part_ends: Sequence[int], last: int | None = None) -> list[int]:
    """Return the ends of parts that are boundaries. last: the last such end before them; None where there is none."""
    if not part_ends:
        return []
    accepted = []
    if last is None:
        last = part_ends[0]
        accepted.append(last)
    for end in part_ends:
        if end - last >= PART_BYTES_MIN and end % GRID_BYTES >= PART_BYTES_MIN:
            accepted.append(end)
            last = end
    return accepted


def _digests(text: bytes, ends: Sequence[int], state: xxh3_128, start: int = 0) -> list[bytes]:
    """Return the digests at `ends`. start: how much of the whole lies before `text`, and is hashed already."""
    view, at = memoryview(text), start
    update, digest = state.update, state.digest
    digests = []
    for end in ends:
        update(view[at - start : end - start])
        digests.append(digest())
        at = end
    return digests


def prefix_key(digests: Sequence[bytes], marks: Sequence[tuple[SectionType, int]]) -> bytes:
    """Return SHA256(H_sys || sep || H_tools || sep || H_doc), from the sections before the first of another type.

    H of a type is the digest at the end of its last section, and empty when there is none. Without any of the three,
    the key is made of the first boundary alone, which lies at the first KiB or the end of the first part, and stays
    where it is as the prompt grows.
    """
    front = [b"", b"", b""]
    for section, index in marks:
        if section > SectionType.DOC:
            break
        front[section] = digests[index]
    if not any(front):
        return sha256(digests[0]).digest()
    tools, system, documents = front
    return sha256(SEPARATOR.join((system, tools, documents))).digest()
