"""Tells a worker what the parts of a prompt are: the router writes it behind the request's id, the connector reads it.

    chat-7.gc1.T3f2S9a0D1f40r300U1fc8
              '- tools end at byte 0x3f2, the system text at 0x9a0, a document at 0x1f40, and the user's words end the
                 prompt; what lies before 0x1f40 is to be kept for 300 s

Engines hand the id on to their connectors and nothing else that a router can set. Bytes are the router's: it does not
tokenise, so a worker shares its own count of tokens out among the sections in proportion. What comes of it is a hint
for what to keep, and never part of what a block is: a wrong or a forged one costs a worse choice of what to evict.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import inf
from typing import NamedTuple

from ghostcacher_connector.core.types import SectionType

MARK = ".gc1."
"""Begins the hint. The number is that of its form: a worker that does not know it sees no hint."""
ENDS_MAX = 16
"""Runs of one type in a hint, and in a prompt that gets one: most have five."""
HINT_CHARS_MAX = 120
"""With the longest id of a client, 128 characters, an id stays under the 256 that workers report."""
RETAIN_S_MAX = 604_800
"""A week: the longest for which a request can ask that blocks are kept."""
USER_TOKENS_MAX = 512
"""A last turn of more tokens is more than a question: all of it but its last block counts as a document."""

_LETTERS = {
    SectionType.TOOLS: "T",
    SectionType.SYS: "S",
    SectionType.DOC: "D",
    SectionType.SESSION: "H",
    SectionType.USER: "U",
}
_TYPES = {letter: section for section, letter in _LETTERS.items()}
_RUNS = re.compile(r"([TSDHU])([0-9a-f]{1,10})(?:r([0-9]{1,6}))?", re.ASCII)
_HINT = re.compile(rf"{re.escape(MARK)}((?:[TSDHU][0-9a-f]{{1,10}}(?:r[0-9]{{1,6}})?){{1,{ENDS_MAX}}})", re.ASCII)


class SectionEnd(NamedTuple):
    """Where a run of one type of section ends in a prompt."""

    section: SectionType
    end: int
    """How many of the prompt's bytes lie before the end."""
    retain_s: int = 0
    """For how long the client wants everything before the end to be kept, in seconds; 0 when it does not say."""


def encode_sections(ends: Iterable[SectionEnd]) -> str:
    """Return the hint that is written behind a request's id; empty when nothing is to be said.

    ends: in order; the last one is the end of the prompt. Nothing is said of a prompt that is one USER section, and of
    one that has too many sections.
    """
    runs: list[SectionEnd] = []
    for end in ends:
        if runs and runs[-1].section is end.section and not runs[-1].retain_s:
            runs[-1] = end
        else:
            runs.append(end)
    if len(runs) > ENDS_MAX or all(run.section is SectionType.USER and not run.retain_s for run in runs):
        return ""
    hint = MARK + "".join([_encoded(run) for run in runs])
    return hint if len(hint) <= HINT_CHARS_MAX else ""


def _encoded(run: SectionEnd) -> str:
    text = f"{_LETTERS[run.section]}{run.end:x}"
    return f"{text}r{min(run.retain_s, RETAIN_S_MAX)}" if run.retain_s else text


def decode_sections(request_id: str | None) -> tuple[SectionEnd, ...]:
    """Return the section ends that a request's id tells of; none when it tells of none, or not in the form above.

    request_id: as the router gave it, without what an engine puts around it.
    """
    if request_id is None:
        return ()
    at = request_id.rfind(MARK)
    match = _HINT.fullmatch(request_id, at) if at >= 0 else None
    if match is None:
        return ()
    ends: list[SectionEnd] = []
    for letter, end, retain_s in _RUNS.findall(match[1]):
        ends.append(SectionEnd(_TYPES[letter], int(end, 16), min(int(retain_s or 0), RETAIN_S_MAX)))
        if len(ends) > 1 and ends[-1].end <= ends[-2].end:
            return ()
    return tuple(ends) if ends[-1].end else ()


def retain_wanted(value: object) -> float | None:
    """Return for how long a request's ``gc_retain_s`` wants its blocks kept, in seconds; None for what is no such time.

    At most `RETAIN_S_MAX`.
    """
    if not isinstance(value, (int, float)) or type(value) is bool or not 0 <= value < inf:
        return None
    return float(min(value, RETAIN_S_MAX))


class BlockSections:
    """What the blocks of one request belong to. Immutable.

    A block in which a section ends belongs to the next one, since it is of use with that alone.
    """

    __slots__ = ("_ends", "_retain_s", "_sections")

    def __init__(self, ends: Sequence[int], sections: Sequence[SectionType], retain_s: Sequence[float]) -> None:
        """ends: how many blocks lie before the end of each run, ascending. Of each run: its type, and for how long its
        blocks are to be kept."""
        self._ends, self._sections, self._retain_s = ends, sections, retain_s

    def __repr__(self) -> str:
        runs = zip(self._sections, self._ends, self._retain_s, strict=True)
        return f"BlockSections({', '.join(f'{section.name} to {end}, {kept:g} s' for section, end, kept in runs)})"

    def section_of(self, block: int) -> SectionType:
        """Return the type of a block, by its place in the request. Blocks of the answer are SESSION."""
        run = bisect_right(self._ends, block)
        return self._sections[run] if run < len(self._ends) else SectionType.SESSION

    def retain_s(self, block: int) -> float:
        """Return for how long the client wants a block kept, in seconds from now; 0.0 when it does not say."""
        run = bisect_right(self._ends, block)
        return self._retain_s[run] if run < len(self._ends) else 0.0


NO_SECTIONS = BlockSections((), (), ())
"""Of a request of which nothing is known: all of its blocks are SESSION."""


def block_sections(
    ends: Sequence[SectionEnd], prompt_tokens: int, block_tokens: int, retain_s: float = 0.0
) -> BlockSections:
    """Return what the full blocks of a prompt belong to.

    ends: as decoded; none: the prompt counts as one last turn. retain_s: for how long all blocks are to be kept at
    least.

    USER is what comes after the last thing that others may share. So a last turn of up to `USER_TOKENS_MAX` tokens is
    USER. Of a longer one, and of a prompt without a hint, only the block with the last token is, and the rest DOC: it
    may well be a document with a question behind it.
    """
    ends = ends or (SectionEnd(SectionType.USER, 1),)
    kept = list(accumulate((end.retain_s for end in reversed(ends)), max, initial=retain_s))[:0:-1]
    last, size, before = max(0, prompt_tokens - 1) // block_tokens, ends[-1].end, 0
    runs: list[tuple[int, SectionType, float]] = []
    for (section, end_bytes, _), keep_s in zip(ends, kept, strict=True):
        end = end_bytes * prompt_tokens // size
        if section is SectionType.USER and (len(ends) == 1 or end - before > USER_TOKENS_MAX):
            runs.append((min(last, end // block_tokens), SectionType.DOC, keep_s))
        runs.append((end // block_tokens, section, keep_s))
        before = end
    return BlockSections(*zip(*runs, strict=True))
