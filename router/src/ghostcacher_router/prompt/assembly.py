"""Joins messages, parts, tools and documents to canonical bytes, divided into sections.

Every piece of text is UTF-8 and begins with a frame: one byte that UTF-8 never contains. So no content can forge a
frame, ("a", "bc") and ("ab", "c") differ, and text needs no length before it, which would tell apart two messages that
begin alike. A message is its role, its other fields, and its content; the other fields stand before the content, since
templates print names and ids of calls before it.

    message := ROLE role [EXTRA json] (TEXT text | OTHER json | MEDIA digest ...)*
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from xxhash import xxh3_128_hexdigest

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.prompt.bodies import DEPTH_MAX, BadBody, TooDeep
from ghostcacher_router.prompt.boundaries import PromptText
from ghostcacher_router.prompt.canonical import BREAKPOINT, INNER_DEPTH, NODES_MAX, Budget, canonical_json
from ghostcacher_router.prompt.retention import retain_s_of

ROLE, EXTRA, TEXT, OTHER, MEDIA, TOOLS, DOCUMENTS = (bytes([frame]) for frame in range(0xFF, 0xF8, -1))

TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
MEDIA_TYPES = frozenset(
    {
        "image",
        "image_url",
        "input_image",
        "image_pil",
        "image_embeds",
        "audio_url",
        "input_audio",
        "audio_embeds",
        "video_url",
        "video_embeds",
        "prompt_embeds",
        "file",
        "input_file",
    }
)
MEDIA_COPIES = 64
"""How often the digest of an image or another medium is repeated. It then counts as 2 KiB, or 500 tokens of text:
tokens are estimated by bytes, and neither the length of a URL nor that of base64 says how many tokens an image has."""

ITEMS_MAX = 16_384
"""The most messages, items of an input and parts of contents that are walked in one body. Each takes some 10 us. A
conversation that fills a million tokens has a few thousand."""

PLAIN = ("role", "content")
"""The fields of a message that have nothing else to say."""

HEAD = frozenset({"system", "developer"})
"""The roles of messages that belong to the system section when they come first."""

BILLING = "x-anthropic-billing-header"
"""Begins a line that one client puts before its system text, a different one in each request. vLLM takes it out of the
prompt."""


class Reading(NamedTuple):
    """How bodies are read."""

    seed: int
    """The fleet's, of its hashes."""
    billing_kept: frozenset[str | None] = frozenset()
    """The models for which an engine may leave the line that `BILLING` begins in the prompt; None for a request that
    names no model."""
    items_max: int = ITEMS_MAX
    """The most items that are walked in one body."""
    nodes_max: int = NODES_MAX
    """The most nodes of other JSON that are walked in one body."""
    lenient_bytes_max: int = sys.maxsize
    """The longest body that is read as leniently as engines do, where it is no strict JSON."""

    def drops_billing(self, model: str | None) -> bool:
        """Say whether every engine takes the line that `BILLING` begins out of a model's prompts."""
        return model not in self.billing_kept


class Assembly:
    """Puts together one prompt. model: as the body names it. size: bytes of the prompt before what is added.

    Adding raises TooMuch, before anything is walked, when the body has more items or nodes than `reading` allows.
    `items` and `nodes` say how many of these are left, for callers that walk a part of the body themselves. Raises
    TooDeep where something is nested too deeply.
    """

    def __init__(self, reading: Reading, model: str | None, *, size: int = 0) -> None:
        self.items = Budget(reading.items_max)
        self.nodes = Budget(reading.nodes_max)
        self._seed = reading.seed
        self._drops_billing = reading.drops_billing(model)
        self._pieces: list[bytes] = []
        self._size = size
        self.part_ends: list[int] = []
        """Where the parts that were added end in the prompt."""
        self._section_ends: list[tuple[SectionType, int]] = []
        self._section = SectionType.TOOLS
        self._retain_s: dict[int, int] = {}

    def tools(self, form: bytes, retain_s: int = 0) -> None:
        """Add tools in canonical form. retain_s: for how long the client wants them kept; 0 when it does not say."""
        self._part(SectionType.TOOLS, TOOLS, form)
        if retain_s:
            self._retain(retain_s)

    def documents(self, form: bytes) -> None:
        """Add documents that are no messages, in canonical form."""
        self._part(SectionType.DOC, DOCUMENTS, form)

    def text(self, section: SectionType, text: str) -> None:
        """Add plain text."""
        self._part(section, TEXT, text.encode())

    def message(self, section: SectionType, message: Any, where: str, plain: Collection[str] = PLAIN) -> None:
        """Add one message. Raises BadBody, which names `where`, the place of the message in the body.

        plain: fields that are not part of the text beside the role and the content.
        """
        if type(message) is not dict:
            raise BadBody.wrong_type(where, "an object", message)
        role = message.get("role")
        if type(role) is not str:
            raise BadBody.wrong_type(f"{where}.role", "a string", role)
        self._begin(section)
        self._put(ROLE, role.encode())
        if len(message) > len(PLAIN):
            self._extras(message, plain)
        self._content(message.get("content"), f"{where}.content", system=role in HEAD)
        self.part_ends.append(self._size)

    def system(self, content: str | list[Any], where: str) -> None:
        """Add system text that stands outside of the messages, as the system message that it becomes."""
        self._begin(SectionType.SYS)
        self._put(ROLE, b"system")
        self._content(content, where, system=True)
        self.part_ends.append(self._size)

    def item(self, section: SectionType, item: Mapping[str, Any]) -> None:
        """Add an item of a conversation that has no role, such as a call or its result."""
        self._part(section, OTHER, canonical_json(item, self.nodes))

    def prompt(self, preamble: bytes) -> PromptText:
        """Return the prompt. Call once, at the end. preamble: as in `PromptText`."""
        self._end_section()
        return PromptText(self.joined, self.part_ends, self._section_ends, preamble, retain_s=self._retain_s)

    @property
    def joined(self) -> bytes:
        """Return what was added so far."""
        return b"".join(self._pieces)

    @property
    def is_divided(self) -> bool:
        """Whether a section has ended before the one that is added to."""
        return bool(self._section_ends)

    def _extras(self, message: dict[str, Any], plain: Collection[str]) -> None:
        self.nodes.take(len(message))
        extras = {k: v for k, v in message.items() if v is not None and k not in plain and k != BREAKPOINT}
        if extras:
            self._put(EXTRA, canonical_json(extras, self.nodes))

    def _content(self, content: Any, where: str, *, system: bool = False, depth: int = INNER_DEPTH) -> None:
        if depth > DEPTH_MAX:
            raise TooDeep
        if type(content) is str:
            self._text(content, system=system)
        elif type(content) is list:
            self.items.take(len(content))
            for index, part in enumerate(content):
                if type(part) is str:
                    self._text(part, system=system)
                elif type(part) is dict:
                    self._content_part(part, f"{where}[{index}]", system=system, depth=depth)
                else:
                    raise BadBody.wrong_type(f"{where}[{index}]", "an object or a string", part)
        elif content is not None:
            raise BadBody.wrong_type(where, "a string or an array", content)

    def _content_part(self, part: dict[str, Any], where: str, *, system: bool, depth: int) -> None:
        part_type = part.get("type")
        if type(part_type) is not str:
            part_type = None
        if part_type in TEXT_TYPES:
            text = part.get("text")
            if type(text) is not str:
                raise BadBody.wrong_type(f"{where}.text", "a string", text)
            self._text(text, system=system)
        elif part_type in MEDIA_TYPES:
            form = canonical_json(part, self.nodes)
            self._put(MEDIA, MEDIA_COPIES * xxh3_128_hexdigest(form, self._seed).encode())
        elif part_type == "tool_result":
            self.nodes.take(len(part))
            self._put(OTHER, canonical_json({k: v for k, v in part.items() if k != "content"}, self.nodes))
            self._content(part.get("content"), f"{where}.content", depth=depth + 2)
        else:
            self._put(OTHER, canonical_json(part, self.nodes))
        if (mark := part.get(BREAKPOINT)) is not None:
            self._retain(retain_s_of(mark))

    def _text(self, text: str, *, system: bool) -> None:
        if system and self._drops_billing and text.startswith(BILLING):
            text = text.partition("\n")[2]
            if not text:
                return
        self._put(TEXT, text.encode())

    def _part(self, section: SectionType, frame: bytes, data: bytes) -> None:
        self._begin(section)
        self._put(frame, data)
        self.part_ends.append(self._size)

    def _begin(self, section: SectionType) -> None:
        if section is not self._section:
            self._end_section()
            self._section = section

    def _end_section(self) -> None:
        """End the section here, unless it is empty or ended here already."""
        if self._size > (self._section_ends[-1][1] if self._section_ends else 0):
            self._section_ends.append((self._section, self._size))

    def _retain(self, retain_s: int) -> None:
        """End the section here; note for how long all before its end is to be kept, 0 when the client does not say."""
        self._end_section()
        if retain_s and self._section_ends:
            place = len(self._section_ends) - 1
            self._retain_s[place] = max(retain_s, self._retain_s.get(place, 0))

    def _put(self, frame: bytes, data: bytes) -> None:
        self._pieces += (frame, data)
        self._size += len(frame) + len(data)


def section_types_of(roles: Sequence[str | None]) -> list[SectionType]:
    """Return the section of each message of a conversation, judged by the roles."""
    front, turn = turns_of(roles)
    return [SectionType.SYS] * front + [SectionType.SESSION] * (turn - front) + [SectionType.USER] * (len(roles) - turn)


def turns_of(roles: Sequence[str | None]) -> tuple[int, int]:
    """Return the places of the first messages of a conversation that are SESSION, and USER.

    System and developer messages at its front are SYS. The last turn is USER: what follows the last message of the
    model, be it the user's words or results of tools. A message of the model at the very end is part of that turn,
    since it is a beginning that the model is to continue. What lies between is SESSION.
    """
    count = len(roles)
    front = 0
    while front < count and roles[front] in HEAD:
        front += 1
    turn = count - 1
    while turn > front and roles[turn - 1] != "assistant":
        turn -= 1
    return front, max(turn, front)
