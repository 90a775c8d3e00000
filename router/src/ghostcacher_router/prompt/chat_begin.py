"""What is known of a chat's body up to the end of one of its messages, and how a body that begins so is read on.

    {"model": "m", "messages": [{"role": "system", ...}, {"role": "user", ...}], "stream": true}
    '------------------- known: `size` bytes ---------'---- the rest: it alone is decoded ------

For decoding, a string that no client can know stands for the known messages. So the rest is read by the same grammar as
in the whole body, and what it says of a field twice shows: the list of messages then no longer begins with that string.
Prompt and boundaries are those that reading the whole body gives (parse.py), or there are none.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xxhash import xxh3_128, xxh3_128_digest

from ghostcacher_connector.core.sections import encode_ends, with_tags
from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.prompt.assembly import HEAD, PLAIN, ROLE, TEXT, Assembly, Reading, turns_of
from ghostcacher_router.prompt.bodies import ABSENT, ChatBody
from ghostcacher_router.prompt.boundaries import PromptText, Running, prefix_key, tools_tag_of
from ghostcacher_router.prompt.canonical import Budget
from ghostcacher_router.prompt.named_sections import named_section_types
from ghostcacher_router.prompt.prompts import PLAIN_NODES, chat_preamble, is_plain, role_of
from ghostcacher_router.types import Prompt

PARTS_MAX = 1024
"""The most messages that are remembered of one body: what is kept of it has a bound."""


class _Alike(NamedTuple):
    """What bodies that begin alike have in common beside their messages."""

    model: str | None
    system: str | list[Any] | None
    drops_billing: bool
    tools: tuple[bytes | None, bytes | None]
    """Digests of tools and of functions."""
    preamble: bytes
    is_plain: bool
    """Whether nothing but the model is in the preamble."""
    front: int
    """Messages of the system section, of the body that was read first."""
    lead: int
    """Parts before the first message: tools, functions, system text."""
    tools_end: int
    tools_tag: bytes | None


class ChatBegin:
    """The beginning of the bodies of some chats. Immutable.

    size: its bytes. short: what stands for it when a body is decoded. mark: the string in it that no client can know.
    count: its messages.
    """

    __slots__ = ("_alike", "_left", "_prefix_key", "_roles", "_running", "count", "mark", "short", "size")

    def __init__(
        self,
        alike: _Alike,
        running: Running,
        left: tuple[int, int],
        roles: list[str | None],
        *,
        size: int = 0,
        mark: str = "",
        short: bytes = b"",
    ) -> None:
        """running: up to the last message. left: items and nodes that may still be walked. roles: of the messages."""
        self._alike, self._running, self._left, self._roles = alike, running, left, roles
        self._prefix_key: bytes | None = None
        """Of a prompt whose front ends where that of the known messages does."""
        self.size, self.mark, self.short, self.count = size, mark, short, len(roles)

    @staticmethod
    def before_messages(chat: ChatBody, text: PromptText, reading: Reading) -> ChatBegin:
        """Know what stands before the first message of a prompt. Call `learnable` before."""
        roles = [role_of(message) for message in chat.messages or ()]
        lead = len(text.part_ends) - len(roles)
        running, lead_ends = Running(xxh3_128(text.preamble, reading.seed)), text.part_ends[:lead]
        alike = _Alike(
            chat.model,
            chat.system,
            reading.drops_billing(chat.model),
            _digests_of_tools(chat, reading),
            text.preamble,
            is_plain(chat),
            turns_of(roles)[0],
            lead,
            _tools_end_of(text),
            tools_tag_of(text.text, text.section_ends, reading.seed),
        )
        if lead_ends:
            running = running.grown(text.text[: lead_ends[-1]], lead_ends)
        return ChatBegin(alike, running, (reading.items_max, reading.nodes_max), [])

    def __repr__(self) -> str:
        return f"ChatBegin(size={self.size}, messages={self.count})"

    @staticmethod
    def learnable(chat: ChatBody, text: PromptText) -> bool:
        """Say whether nothing but messages can divide the prompt of a body into sections."""
        messages = chat.messages
        if messages is None or len(messages) > PARTS_MAX:
            return False
        return not chat.documents and not text.retain_s and type(chat.system) is not list

    def extended(self, messages: Sequence[Any], begin: bytes, size: int, reading: Reading) -> ChatBegin | None:
        """Return what is known with these messages behind it; None where they say more of sections than their roles.

        begin: what stands in the body before the list of messages. size: up to the end of the last message.
        """
        assembly = self._assembly(messages, reading)
        if assembly.is_divided or self.count + len(messages) < self._alike.front:
            return None
        mark = secrets.token_hex(16)
        return ChatBegin(
            self._alike,
            self._running.grown(assembly.joined, assembly.part_ends),
            (assembly.items.left, assembly.nodes.left),
            self._roles + [role_of(message) for message in messages],
            size=size,
            mark=mark,
            short=b'%b"%b"' % (begin, mark.encode()),
        )

    def prompt(self, family: str, chat: ChatBody, headers: Mapping[bytes, bytes], reading: Reading) -> Prompt | None:
        """Return the prompt of a body that begins so; None where it has to be read as a whole.

        chat: decoded of `short` and the rest. Raises TooMuch and BadBody where the rest gives reason, in other words
        than those that are told of a whole body.
        """
        messages, alike = chat.messages, self._alike
        if (
            not messages
            or messages[0] != self.mark
            or chat.documents
            or chat.model != alike.model
            or chat.system != alike.system
            or reading.drops_billing(chat.model) is not alike.drops_billing
        ):
            return None
        rest, running = messages[1:], self._running
        items, nodes = self._left
        added = _plain(rest, running.size) if items >= len(rest) else None
        if added is None:
            assembly = self._assembly(rest, reading)
            if assembly.is_divided:
                return None
            nodes = assembly.nodes.left
            added = assembly.joined, assembly.part_ends, [role_of(message) for message in rest]
        text, part_ends, roles = added
        roles = self._roles + roles
        front, _ = turns = turns_of(roles)
        if (
            (front != alike.front and alike.tools_tag is not None)
            or named_section_types(headers, chat.metadata, len(roles))
            or not self._begins_alike(family, chat, nodes)
            or _digests_of_tools(chat, reading) != alike.tools
        ):
            return None
        marks = _sections(roles, turns, running.part_ends + part_ends, alike.lead, alike.tools_end)
        ends, digests = running.boundaries(text, part_ends, marks)
        places = [(section, bisect_left(ends, end)) for section, end in marks]
        key = self._prefix_key
        if key is None or front != alike.front:
            key = prefix_key(digests, places)
            if front == alike.front:
                self._prefix_key = key
        return Prompt(ends, digests, places, key, None, with_tags(encode_ends(marks), tools=alike.tools_tag))

    def _begins_alike(self, family: str, chat: ChatBody, nodes: int) -> bool:
        """Say whether a body of this model has the same preamble. nodes: that may still be walked."""
        if self._alike.is_plain and nodes >= PLAIN_NODES and is_plain(chat):
            return True
        return chat_preamble(family, chat, Budget(nodes)) == self._alike.preamble

    def _assembly(self, messages: Sequence[Any], reading: Reading) -> Assembly:
        """Return these messages, put together behind those that are known. Raises TooMuch and BadBody."""
        items, nodes = self._left
        reading = reading._replace(items_max=items, nodes_max=nodes)
        assembly = Assembly(reading, self._alike.model, size=self._running.size)
        assembly.items.take(len(messages))
        for index, message in enumerate(messages, self.count):
            assembly.message(SectionType.TOOLS, message, f"messages[{index}]")
        return assembly


def _plain(messages: Sequence[Any], size: int) -> tuple[bytes, list[int], list[str | None]] | None:
    """Return messages of a role and a text alone as an `Assembly` puts them together; None where there are others.

    Returned are their text, where each of them ends in the prompt, and their roles. size: bytes of the prompt before.
    """
    pieces: list[bytes] = []
    ends: list[int] = []
    roles: list[str | None] = []
    for message in messages:
        if type(message) is not dict or len(message) != len(PLAIN):
            return None
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or type(content) is not str or role in HEAD:
            return None
        piece = b"%b%b%b%b" % (ROLE, role.encode(), TEXT, content.encode())
        pieces.append(piece)
        size += len(piece)
        ends.append(size)
        roles.append(role)
    return b"".join(pieces), ends, roles


def _digests_of_tools(chat: ChatBody, reading: Reading) -> tuple[bytes | None, bytes | None]:
    """Return what tells the tools of one body from those of another."""
    if chat.tools is ABSENT and chat.functions is ABSENT:
        return None, None
    tools, functions = (
        None if raw is ABSENT else xxh3_128_digest(bytes(raw), reading.seed) for raw in (chat.tools, chat.functions)
    )
    return tools, functions


def _tools_end_of(text: PromptText) -> int:
    ends = text.section_ends
    return ends[0][1] if ends and ends[0][0] is SectionType.TOOLS else 0


def _sections(
    roles: Sequence[str | None], turns: tuple[int, int], part_ends: Sequence[int], lead: int, tools_end: int
) -> list[tuple[SectionType, int]]:
    """Return the sections of a chat, and where each ends. turns: as in `turns_of`. lead: parts before the messages."""
    front, turn = turns
    marks = [(SectionType.TOOLS, tools_end)] if tools_end else []
    if lead + front and part_ends[lead + front - 1] > tools_end:
        marks.append((SectionType.SYS, part_ends[lead + front - 1]))
    if turn > front:
        marks.append((SectionType.SESSION, part_ends[lead + turn - 1]))
    if len(roles) > turn:
        marks.append((SectionType.USER, part_ends[-1]))
    return marks
