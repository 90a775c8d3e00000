"""Loads that are made: questions on documents, retrieval (RAG), conversations and agents. Alike for one seed.

    documents  [document .........][question]                 documents by popularity
    rag        [rules][passage][passage][passage][question]   passages by popularity, in the order of a search
    chat       [rules][history ....... grows][message]        people, who think between turns
    agents     [tools][history ........ grows][tool's answer] programs, which go on soon

Popularity is Zipf's: the one of rank r is asked for in proportion to ``r ** -zipf``; 0 makes all alike. Arrivals are
Poisson's. A conversation's later turns come after a pause from the arrival of the turn before, whether that has been
answered or not: a load does not wait for a fleet.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import accumulate
from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import SectionType
from ghostcacher_simulator.load.requests import Load, Row, make_requests

Many = Annotated[int, Meta(ge=1, le=10_000_000)]
Some = Annotated[int, Meta(ge=0, le=10_000_000)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Exponent = Annotated[float, Meta(ge=0, le=10)]
Pause = Annotated[float, Meta(ge=0, le=1e6)]


class Documents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Questions on whole documents."""

    requests: Many = 1_500
    """How many there are."""
    rate: Rate = 8.0
    """Requests a second, in the mean."""
    documents: Many = 60
    """How many documents there are."""
    tokens: Many = 8_192
    """Of each document."""
    question: Many = 200
    """Tokens of a question."""
    answer: Many = 104
    """Tokens of an answer, in the mean: from 1 to nearly twice as many."""
    zipf: Exponent = 0.0
    """How much more popular the first documents are."""


class Rag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Questions with passages that a search has found."""

    requests: Many = 1_500
    """How many there are."""
    rate: Rate = 8.0
    """Requests a second, in the mean."""
    passages: Many = 2_000
    """How many can be found."""
    found: Annotated[int, Meta(ge=1, le=100)] = 5
    """How many each prompt has, no more than there are."""
    tokens: Many = 512
    """Of each passage."""
    rules: Some = 1_024
    """Tokens that every prompt begins with."""
    question: Many = 200
    """Tokens of a question."""
    answer: Many = 200
    """Tokens of an answer, in the mean."""
    zipf: Exponent = 1.0
    """How much more popular the first passages are."""


class Chat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Conversations of people."""

    requests: Many = 1_500
    """Turns of all conversations."""
    rate: Rate = 8.0
    """Requests a second, in the mean: as many conversations begin as that takes."""
    turns: Many = 8
    """Of a conversation, in the mean."""
    rules: Some = 1_024
    """Tokens that every conversation begins with."""
    message: Many = 150
    """Tokens of a person's message, in the mean."""
    answer: Many = 250
    """Tokens of an answer, in the mean."""
    pause: Pause = 30.0
    """From one turn to the next, in s, in the mean."""


class Agents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tasks of agents, which call tools and go on with what these answer."""

    requests: Many = 1_500
    """Steps of all tasks."""
    rate: Rate = 8.0
    """Requests a second, in the mean."""
    kinds: Many = 4
    """Kinds of agents, each with tools and rules of its own."""
    turns: Many = 20
    """Steps of a task, in the mean."""
    tools: Many = 6_000
    """Tokens of the tools and rules of a kind."""
    message: Many = 600
    """Tokens of a tool's answer, in the mean."""
    answer: Many = 120
    """Tokens that a step writes, in the mean."""
    pause: Pause = 5.0
    """From one step to the next, in s, in the mean."""
    zipf: Exponent = 1.0
    """How much more usual the first kinds are."""


Made = Documents | Rag | Chat | Agents
KINDS: Mapping[str, type[Made]] = {"documents": Documents, "rag": Rag, "chat": Chat, "agents": Agents}


def parse_made(text: str) -> Made:
    """Return what ``KIND`` or ``KIND:name=value,name=value`` describes. Raises ConfigError, which names the value."""
    name, _, rest = text.partition(":")
    if name not in KINDS:
        raise ConfigError(f"load: expected one of {', '.join(KINDS)}, got {name!r}")
    kind = KINDS[name]
    fields = [field.name for field in msgspec.structs.fields(kind)]
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        field, equals, value = part.partition("=")
        if not equals or field not in fields:
            raise ConfigError(f"load {name}: expected name=value with a name of {', '.join(fields)}, got {part!r}")
        given[field] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as exc:
        what, _, field = str(exc).partition(" - at `$.")
        field = field.rstrip("`")
        raise ConfigError(f"load {name}, {field}: {what[:1].lower()}{what[1:]}, got {given.get(field)!r}") from exc


def make_load(made: Made, *, seed: int = 1, block_tokens: int = 128, speed: float = 1.0) -> Load:
    """Return the load that is described. block_tokens: what shares less than a block shares nothing."""
    rows: Callable[[Any, Random, int], Iterator[Row]] = _MAKERS[type(made)]
    name = next(name for name, kind in KINDS.items() if isinstance(made, kind))
    requests = make_requests(rows(made, Random(seed), block_tokens), block_tokens=block_tokens, speed=speed)  # noqa: S311
    return Load(name, requests[: made.requests], block_tokens)


def _documents(made: Documents, rng: Random, block_tokens: int) -> Iterator[Row]:
    choose, at_s = _Zipf(made.documents, made.zipf, rng), 0.0
    for number in range(made.requests):
        text = _Text(block_tokens)
        text.add(f"document {choose()}", made.tokens, SectionType.DOC)
        text.add(f"question {number}", made.question, SectionType.USER)
        at_s += rng.expovariate(made.rate)
        yield text.row(at_s, _about(made.answer, rng))


def _rag(made: Rag, rng: Random, block_tokens: int) -> Iterator[Row]:
    choose, at_s = _Zipf(made.passages, made.zipf, rng), 0.0
    for number in range(made.requests):
        found: dict[int, None] = {}
        while len(found) < min(made.found, made.passages):
            found[choose()] = None
        text = _Text(block_tokens)
        text.add("rules", made.rules, SectionType.SYS)
        for passage in found:
            text.add(f"passage {passage}", made.tokens, SectionType.DOC)
        text.add(f"question {number}", made.question, SectionType.USER)
        at_s += rng.expovariate(made.rate)
        yield text.row(at_s, _about(made.answer, rng))


def _chat(made: Chat, rng: Random, block_tokens: int) -> Iterator[Row]:
    def begin() -> _Text:
        text = _Text(block_tokens)
        text.add("rules", made.rules, SectionType.SYS)
        return text

    return _talks(made, begin, rng)


def _agents(made: Agents, rng: Random, block_tokens: int) -> Iterator[Row]:
    choose = _Zipf(made.kinds, made.zipf, rng)

    def begin() -> _Text:
        text = _Text(block_tokens)
        text.add(f"tools {choose()}", made.tools, SectionType.TOOLS)
        return text

    return _talks(made, begin, rng)


def _talks(made: Chat | Agents, begin: Callable[[], _Text], rng: Random) -> Iterator[Row]:
    """Yield the turns of conversations; not in order of time.

    Conversations begin until as many turns have come as there are to be: those that begin later have none of them.
    """
    coming_s: list[float] = []
    began_s, number, come = 0.0, 0, 0
    while come < made.requests:
        began_s += rng.expovariate(made.rate / made.turns)
        text, at_s = begin(), began_s
        for turn in range(_about(made.turns, rng)):
            text.add(f"message {number}/{turn}", _about(made.message, rng), SectionType.USER)
            answer = _about(made.answer, rng)
            heappush(coming_s, at_s)
            yield text.row(at_s, answer, f"session {number}")
            text.close()
            text.add(f"answer {number}/{turn}", answer, SectionType.SESSION)
            at_s += rng.expovariate(1 / made.pause) if made.pause else 0.0
        number += 1
        while coming_s and coming_s[0] <= began_s:
            heappop(coming_s)
            come += 1


_MAKERS: Mapping[type[Any], Callable[[Any, Random, int], Iterator[Row]]] = {
    Documents: _documents,
    Rag: _rag,
    Chat: _chat,
    Agents: _agents,
}


class _Text:
    """A prompt that is put together of pieces of any length, and cut into segments of one length.

    A segment's name says all that lies in it, so that equal names mean equal texts.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._whole: list[str] = []
        self._open: list[str] = []
        self._open_tokens = 0
        self._ends: list[tuple[SectionType, int]] = []

    @property
    def tokens(self) -> int:
        """Return how many tokens it has so far."""
        return len(self._whole) * self._block_tokens + self._open_tokens

    def add(self, name: str, tokens: int, section: SectionType) -> None:
        """Put a piece behind what is there. Pieces of one name and length are equal."""
        done = 0
        while done < tokens:
            taken = min(tokens - done, self._block_tokens - self._open_tokens)
            self._open.append(f"{name}[{done}:{done + taken}]")
            self._open_tokens += taken
            done += taken
            if self._open_tokens == self._block_tokens:
                self._whole.append(" ".join(self._open))
                self._open, self._open_tokens = [], 0
        if not tokens:
            return
        self._end(section, self.tokens)

    def close(self) -> None:
        """Make history of the last message."""
        self._end(SectionType.SESSION, self._ends.pop()[1])

    def _end(self, section: SectionType, tokens: int) -> None:
        if self._ends and self._ends[-1][0] is section:
            self._ends.pop()
        self._ends.append((section, tokens))

    def row(self, at_s: float, answer_tokens: int, session: str | None = None) -> Row:
        """Return it as the prompt of a request."""
        segments = [*self._whole, *([" ".join(self._open)] if self._open else [])]
        return Row(at_s, self.tokens, answer_tokens, segments, tuple(self._ends), session)


class _Zipf:
    """Chooses numbers from 0 by their popularity."""

    def __init__(self, count: int, exponent: float, rng: Random) -> None:
        self._sums: Sequence[float] = list(accumulate(rank**-exponent for rank in range(1, count + 1)))
        self._rng = rng

    def __call__(self) -> int:
        return min(bisect(self._sums, self._rng.random() * self._sums[-1]), len(self._sums) - 1)


def _about(mean: int, rng: Random) -> int:
    """Return a number from 1 to nearly twice the mean, each as likely as another."""
    return rng.randint(1, max(1, 2 * mean - 1))
