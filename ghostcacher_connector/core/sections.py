"""Tells a worker what the parts of a prompt are: the router writes it behind the request's id, the connector reads it.

    chat-7.gc1.T3f2S9a0D1f40r300U1fc8k0123456789i0123456789ab
              '- tools end at byte 0x3f2, the system text at 0x9a0, a document at 0x1f40, and the user's words end the
                 prompt; what lies before 0x1f40 is to be kept for 300 s; the tag of the tools is 0123456789, that of
                 the session 0123456789ab

Engines hand the id on to their connectors and nothing else that a router can set. Bytes are the router's: it does not
tokenise, so a worker shares its own count of tokens out among the sections in proportion. What comes of it is a hint
for what to keep, and never part of what a block is: a wrong or a forged one costs a worse choice of what to evict.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate, pairwise
from math import inf
from typing import NamedTuple

from ghostcacher_connector.core.types import SectionType

MARK = ".gc1."
"""Begins the hint. The number is that of its form: a worker that does not know it sees no hint."""
ENDS_MAX = 16
"""Runs of one type in a hint, and in a prompt that gets one: most have five."""
TAG_BYTES = 6
"""Of the tag of a session: of a million sessions in a worker's tiers two share one with a chance of 1 in 500."""
AGENT_BYTES = 2
"""Of the tag of a system text: it tells the few agents of one session apart."""
TOOLS_TAG_BYTES = AGENT_BYTES + 3
"""Of the tag of a set of tools: what has changed looks the same once in 16 million times."""
RUNS_CHARS_MAX = 95
HINT_CHARS_MAX = len(MARK) + RUNS_CHARS_MAX + 1 + 2 * TOOLS_TAG_BYTES + 1 + 2 * TAG_BYTES
"""With the longest id of a client, 128 characters, an id stays under the 256 that workers report."""
RETAIN_S_MAX = 604_800
"""A week: the longest for which a request can ask that blocks are kept."""
USER_TOKENS_MAX = 512
"""A last turn of more tokens is more than a question: all of it but its last block counts as a document."""

HISTORY = frozenset({SectionType.SESSION, SectionType.USER})
"""What belongs to one session alone."""
_LETTERS = {
    SectionType.TOOLS: "T",
    SectionType.SYS: "S",
    SectionType.DOC: "D",
    SectionType.SESSION: "H",
    SectionType.USER: "U",
}
_IN_ORDER = "".join(_LETTERS[section] for section in sorted(SectionType))
_TYPES = {letter: section for section, letter in _LETTERS.items()}
_RUNS = re.compile(r"([TSDHU])([0-9a-f]{1,10})(?:r([0-9]{1,6}))?", re.ASCII)
_RUNS_OF_HINT = rf"((?:[TSDHU][0-9a-f]{{1,10}}(?:r[0-9]{{1,6}})?){{0,{ENDS_MAX}}})"
_TAGS_OF_HINT = rf"(?:k([0-9a-f]{{{2 * TOOLS_TAG_BYTES}}}))?(?:i([0-9a-f]{{{2 * TAG_BYTES}}}))?"
_HINT = re.compile(rf"{re.escape(MARK)}{_RUNS_OF_HINT}{_TAGS_OF_HINT}", re.ASCII)


class SectionEnd(NamedTuple):
    """Where a run of one type of section ends in a prompt."""

    section: SectionType
    end: int
    """How many of the prompt's bytes lie before the end."""
    retain_s: int = 0
    """For how long the client wants everything before the end to be kept, in seconds; 0 when it does not say."""


class Hint(NamedTuple):
    """What a request's id tells."""

    ends: tuple[SectionEnd, ...] = ()
    """In order; the last one is the end of the prompt. None when it does not say."""
    session: bytes | None = None
    """The tag of the session that the request belongs to; None when it does not say."""
    tools: bytes | None = None
    """The tag of the prompt's system text, `AGENT_BYTES`, and that of its tools; None without tools."""


def session_tag(session: str, seed: int) -> bytes:
    """Return the tag of a session. seed: the fleet's, so that nobody else finds out the name from the tag."""
    return _tag(session.encode(errors="surrogatepass"), TAG_BYTES, seed, b"gc session")


def tools_tag(system: bytes, tools: bytes, seed: int) -> bytes:
    """Return the tag of a prompt's tools, behind that of its system text: see `Hint`.

    tools: their text, or a digest of it. seed: the fleet's.
    """
    return _tag(system, AGENT_BYTES, seed, b"gc system") + _tag(tools, TOOLS_TAG_BYTES - AGENT_BYTES, seed, b"gc tools")


def _tag(text: bytes, size: int, seed: int, person: bytes) -> bytes:
    key = (seed % (1 << 64)).to_bytes(8, "little")
    return blake2b(text, digest_size=size, key=key, person=person).digest()


def encode_hint(ends: Iterable[SectionEnd]) -> str:
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
    said = "".join([_encoded(run) for run in runs])
    return MARK + said if len(said) <= RUNS_CHARS_MAX else ""


def encode_ends(ends: Sequence[tuple[SectionType, int]]) -> str:
    """Return what `encode_hint` does of sections in order, one of each type at most, that nobody wants to be kept."""
    if not ends or ends[0][0] is SectionType.USER:
        return ""
    return MARK + "".join([f"{_IN_ORDER[section]}{end:x}" for section, end in ends])


def with_tags(hint: str, *, tools: bytes | None = None, session: bytes | None = None) -> str:
    """Return a hint that tells these tags, too: that of the session last. tools, session: see `Hint`."""
    told = ("" if tools is None else f"k{tools.hex()}") + ("" if session is None else f"i{session.hex()}")
    return f"{hint or MARK}{told}" if told else hint


def _encoded(run: SectionEnd) -> str:
    text = f"{_LETTERS[run.section]}{run.end:x}"
    return f"{text}r{min(run.retain_s, RETAIN_S_MAX)}" if run.retain_s else text


def decode_hint(request_id: str | None) -> Hint:
    """Return what a request's id tells; nothing when it tells it in another form than the above.

    request_id: as the router gave it, without what an engine puts around it.
    """
    at = -1 if request_id is None else request_id.rfind(MARK)
    match = None if request_id is None or at < 0 else _HINT.fullmatch(request_id, at)
    if match is None:
        return Hint()
    ends = _decoded_runs(match[1])
    return Hint() if ends is None else Hint(ends, session=_decoded_tag(match[3]), tools=_decoded_tag(match[2]))


def _decoded_tag(said: str | None) -> bytes | None:
    return None if said is None else bytes.fromhex(said)


def _decoded_runs(said: str) -> tuple[SectionEnd, ...] | None:
    """Return the ends; None when they do not rise from above 0."""
    ends: list[SectionEnd] = []
    before = 0
    for letter, end, retain_s in _RUNS.findall(said):
        ends.append(SectionEnd(_TYPES[letter], int(end, 16), min(int(retain_s or 0), RETAIN_S_MAX)))
        if ends[-1].end <= before:
            return None
        before = ends[-1].end
    return tuple(ends)


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

    __slots__ = ("_ends", "_history", "_retain_s", "_sections", "session", "tools")

    def __init__(
        self,
        ends: Sequence[int],
        sections: Sequence[SectionType],
        retain_s: Sequence[float],
        *,
        session: bytes | None = None,
        history: int = 0,
        tools: bytes | None = None,
    ) -> None:
        """ends: how many blocks lie before the end of each run, ascending. Of each run: its type, and for how long its
        blocks are to be kept. history: the first block that belongs to this session alone."""
        self._ends, self._sections, self._retain_s = ends, sections, retain_s
        self._history = history
        self.session = session
        """The tag of the request's session; None when it is not known."""
        self.tools = tools
        """The tag of its system text and of its tools, see `Hint`; None without tools, and when it is not known."""

    def __repr__(self) -> str:
        runs = zip(self._sections, self._ends, self._retain_s, strict=True)
        return f"BlockSections({', '.join(f'{section.name} to {end}, {kept:g} s' for section, end, kept in runs)})"

    def section_of(self, block: int) -> SectionType:
        """Return the type of a block, by its place in the request. Blocks of the answer are SESSION."""
        run = bisect_right(self._ends, block)
        return self._sections[run] if run < len(self._ends) else SectionType.SESSION

    def session_of(self, block: int) -> bytes | None:
        """Return the tag of the session that a block belongs to; None for what sessions share, and when not known."""
        return self.session if block >= self._history else None

    def after_tools(self, block: int) -> bool:
        """Return whether a block is one of tools, or comes after some."""
        run = bisect_right(self._ends, block)
        return SectionType.TOOLS in self._sections[: run + 1]

    @property
    def front(self) -> int:
        """How many blocks lie in tools and system text, which are at the front of the prompt."""
        ends = [end for end, section in zip(self._ends, self._sections, strict=True) if section <= SectionType.SYS]
        return ends[-1] if ends and self._sections[0] <= SectionType.SYS else 0

    def retain_s(self, block: int) -> float:
        """Return for how long the client wants a block kept, in seconds from now; 0.0 when it does not say."""
        run = bisect_right(self._ends, block)
        return self._retain_s[run] if run < len(self._ends) else 0.0


NO_SECTIONS = BlockSections((), (), ())
"""Of a request of which nothing is known: all of its blocks are SESSION."""


def block_sections(hint: Hint, prompt_tokens: int, block_tokens: int, retain_s: float = 0.0) -> BlockSections:
    """Return what the full blocks of a prompt belong to.

    hint: as decoded; without ends the prompt counts as one last turn. retain_s: for how long all blocks are to be kept
    at least.

    USER is what comes after the last thing that others may share. So a last turn of up to `USER_TOKENS_MAX` tokens is
    USER. Of a longer one, and of a prompt without a hint, only the block with the last token is, and the rest DOC: it
    may well be a document with a question behind it.
    """
    ends = hint.ends or (SectionEnd(SectionType.USER, 1),)
    kept = list(accumulate((end.retain_s for end in reversed(ends)), max, initial=retain_s))[:0:-1]
    last, size, before = max(0, prompt_tokens - 1) // block_tokens, ends[-1].end, 0
    runs: list[tuple[int, SectionType, float]] = []
    for (section, end_bytes, _), keep_s in zip(ends, kept, strict=True):
        end = end_bytes * prompt_tokens // size
        if section is SectionType.USER and (len(ends) == 1 or end - before > USER_TOKENS_MAX):
            runs.append((min(last, end // block_tokens), SectionType.DOC, keep_s))
        runs.append((end // block_tokens, section, keep_s))
        before = end
    blocks, sections, kept_s = zip(*runs, strict=True)
    shared = next((before.end for before, end in pairwise(ends) if end.section in HISTORY), 0)
    history = 0 if ends[0].section in HISTORY else shared * prompt_tokens // size // block_tokens
    return BlockSections(blocks, sections, kept_s, session=hint.session, history=history, tools=hint.tools)
