"""Remembers how the bodies of chats begin, so that what many of them have in common is read once.

Bodies that share their first bytes are told apart at the ends of their messages, by digests of all before:

    seen once        only that it was seen: text that never comes again costs next to nothing
    seen twice       where its messages end
    seen again       one that has the same first messages: they are known from now on (chat_begin.py)

What follows known messages is looked up in the same way, so that a conversation is known further as it grows. Nothing
is kept of a body but digests, roles and places. What comes of a body never depends on what is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from xxhash import xxh3_128, xxh3_128_digest

from ghostcacher_router.prompt.assembly import Reading
from ghostcacher_router.prompt.bodies import BadBody, ChatBody, RawMessages, TakesLong
from ghostcacher_router.prompt.boundaries import PromptText
from ghostcacher_router.prompt.canonical import TooMuch
from ghostcacher_router.prompt.chat_begin import ChatBegin
from ghostcacher_router.prompt.decoding import BodyDecoder
from ghostcacher_router.types import Prompt

KEY_BYTES: Final = 256
"""Bodies that differ in fewer bytes have nothing in common that is worth knowing."""
KNOWN_BYTES_MIN: Final = 512
"""Of messages that are worth remembering, or of a rest in which there may be some."""
SHORT_BYTES_MAX: Final = 8 << 10
"""Of a body before its messages, which is decoded each time."""
ENDS_MAX: Final = 64
"""Messages of one body that are told apart, the others lie between them."""
DEPTH_MAX: Final = 32
"""How often known messages follow known ones. Each costs a microsecond."""
PLACES_MAX: Final = 512
"""Beginnings that are remembered. Each takes some 10 KB, and 100 KB where somebody wants it to take much."""
CANDIDATES_MAX: Final = 2048
"""Places where something may be learned: apart, since most of them are the ends of bodies, and never seen again. Each
takes some 500 bytes, and 10 KB where somebody wants it to take much."""
TOUCHED_EVERY: Final = 16
"""Uses after which a place is the last again that is forgotten."""
MISSES_MAX: Final = 8
"""Bodies with the same first bytes that have no message in common, one after the other: the next ones have none."""

TRIES_MAX: Final = 4
"""Places at which messages are looked for that begin as the first one does."""

Key = tuple[str, int, bytes]


class _End(NamedTuple):
    """The end of a message. size: bytes of the body before it. messages: up to it. digest: of what lies between
    what is known and there."""

    size: int
    messages: int
    digest: bytes


_COMMA = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_messages = msgspec.json.Decoder(RawMessages)


class _Place:
    """What is remembered of bodies with the same first bytes, or the same bytes behind known messages."""

    __slots__ = ("digest", "ends", "known", "misses", "uses")

    def __init__(self) -> None:
        self.known: ChatBegin | None = None
        self.digest = b""
        """Of what is known here, from the end of what was known before."""
        self.ends: Sequence[_End] = ()
        """Of the messages of the last body that came here and had not what is known here."""
        self.uses = 0
        self.misses = 0
        """Bodies in a row that had none of them."""


class Found(NamedTuple):
    """What is known of one body."""

    known: ChatBegin | None
    key: Key
    """Where more may be learned of it."""
    depth: int


class KnownChats:
    """The beginnings of chats that have come lately, of each kind of API. Loop only."""

    def __init__(self) -> None:
        self._places: dict[Key, _Place] = {}
        """Where something is known."""
        self._candidates: dict[Key, _Place] = {}
        """Where nothing is yet."""

    def __repr__(self) -> str:
        return f"KnownChats(places={len(self._places)}, candidates={len(self._candidates)})"

    def find(self, family: str, body: bytes, reading: Reading) -> Found:
        """Return what is known of a body. family: of the API."""
        known, at, depth, places = None, 0, 0, self._places
        seed, view = reading.seed, memoryview(body)
        key: Key = family, seed, body[:KEY_BYTES]
        while (place := places.get(key)) is not None and (more := place.known) is not None:
            size = more.size
            if xxh3_128_digest(view[at:size], seed) != place.digest:
                break
            place.uses += 1
            if not place.uses % TOUCHED_EVERY:
                places[key] = places.pop(key)  # Used last: it is the last to be forgotten.
            known, at, depth = more, size, depth + 1
            key = more.mark, seed, body[at : at + KEY_BYTES]
        return Found(known, key, depth)

    def prompt(
        self,
        found: Found,
        family: str,
        body: bytes,
        headers: Mapping[bytes, bytes],
        decoder: BodyDecoder[ChatBody],
        reading: Reading,
    ) -> tuple[ChatBody, Prompt] | None:
        """Return the fields of a body of which something is known, and its prompt; None when it is to be read as a
        whole. Of `messages` the fields have those that were not known."""
        known = found.known
        if known is None:
            return None
        short = known.short + body[known.size :]
        try:
            chat = decoder.decode(short, reading.lenient_bytes_max)
            prompt = known.prompt(family, chat, headers, reading)
        except (BadBody, TakesLong, TooMuch):
            return None  # The error is told, or not made, as of the whole body.
        if prompt is None:
            return None
        if len(body) - known.size >= KNOWN_BYTES_MIN and (ends := self._seen(found, short, known, reading)):
            self._learn(found, known, chat, short, ends, reading)
        return chat, prompt

    def read(self, found: Found, body: bytes, chat: ChatBody, text: PromptText, reading: Reading) -> None:
        """Note a body that was read as a whole."""
        if found.known is not None or len(body) < KNOWN_BYTES_MIN or not ChatBegin.learnable(chat, text):
            return
        if ends := self._seen(found, body, None, reading):
            self._learn(found, ChatBegin.before_messages(chat, text, reading), chat, body, ends, reading)

    def _seen(self, found: Found, body: bytes, known: ChatBegin | None, reading: Reading) -> _End | None:
        """Note that a body has come to a place; return up to where it is to be known from now on.

        body: where something is known of it, with what stands for that.
        """
        key, candidates = found.key, self._candidates
        place = candidates.pop(key, None)
        if place is None:
            if found.depth < DEPTH_MAX:
                if len(candidates) >= CANDIDATES_MAX:
                    del candidates[next(iter(candidates))]
                candidates[key] = _Place()
            return None
        candidates[key] = place
        if place.misses > MISSES_MAX:
            return None
        ends = _ends_in(body, known, reading.seed)
        had = {(end.size, end.digest) for end in place.ends}
        shared = [end for end in ends if (end.size, end.digest) in had]
        place.ends = ends
        if shared and shared[-1].size - (0 if known is None else known.size) >= KNOWN_BYTES_MIN:
            place.misses = 0
            return shared[-1]
        place.misses += 1
        return None

    def _learn(self, found: Found, known: ChatBegin, chat: ChatBody, body: bytes, end: _End, reading: Reading) -> None:
        """Know a body up to the end of one of its messages. known: what is known before it."""
        place, messages = self._candidates[found.key], chat.messages or ()
        first = 1 if known.count else 0
        begin = _before_messages(body)
        if begin is None or len(begin) > SHORT_BYTES_MAX:
            place.misses = MISSES_MAX + 1
            return
        try:
            more = known.extended(messages[first : first + end.messages - known.count], begin, end.size, reading)
        except TooMuch:
            more = None
        if more is None:
            place.misses = MISSES_MAX + 1
            return
        place.known, place.digest, place.ends = more, end.digest, ()
        del self._candidates[found.key]
        self._places.pop(found.key, None)
        if len(self._places) >= PLACES_MAX:
            del self._places[next(iter(self._places))]
        self._places[found.key] = place


def _places_in(body: bytes) -> list[tuple[int, int]]:
    """Return where each message of a body begins and ends; none where that is not found.

    Where there is the same text before them, that may be found: a stand-in in its place is then no message (`prompt`).
    """
    try:
        raws = [bytes(raw) for raw in _messages.decode(body).messages]
    except msgspec.DecodeError:
        return []
    at = -1
    for _ in range(TRIES_MAX if raws else 0):
        at = body.find(raws[0][:KEY_BYTES], at + 1)
        if at < 0:
            break
        if places := _places_from(at, raws, body):
            return places
    return []


def _places_from(at: int, raws: Sequence[bytes], body: bytes) -> list[tuple[int, int]]:
    """Return where these values stand in a body, if they begin there, with commas between them; else none."""
    places: list[tuple[int, int]] = []
    for raw in raws:
        if places:
            comma = _COMMA.match(body, at)
            at = -1 if comma is None else comma.end()
        if at < 0 or not body.startswith(raw, at):
            return []
        places.append((at, at + len(raw)))
        at += len(raw)
    return places


def _before_messages(body: bytes) -> bytes | None:
    found = _places_in(body)
    return body[: found[0][0]] if found else None


def _ends_in(body: bytes, known: ChatBegin | None, seed: int) -> list[_End]:
    """Return the ends of messages behind what is known. body: as it was decoded."""
    found = _places_in(body)
    shift, first, count = (0, 0, 0) if known is None else (known.size - len(known.short), 1, known.count)
    at = 0 if known is None else len(known.short)
    ends = [end for _, end in found[first:]]
    step = len(ends) // ENDS_MAX + 1
    state, view, places = xxh3_128(seed=seed), memoryview(body), []
    for number in range(step, len(ends) + 1, step):
        end = ends[number - 1]
        state.update(view[at:end])
        places.append(_End(end + shift, count + number, state.digest()))
        at = end
    return places
