"""Puts documents into one message, always in the same order, and says to the router which message that is.

Prompts share KV blocks as far as they begin alike. So the same documents have to come in the same order, whoever asks
and however they were found: they are sorted by the bytes of their text in UTF-8, as every language can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghostcacher.client.arguments import Json, shown, text
from ghostcacher.client.errors import ArgumentError

_FIELDS = ("text", "title", "cache_control")
_HEAD = frozenset({"system", "developer"})
"""The roles that a conversation begins with: documents come behind them."""


def with_documents(messages: Sequence[Json], documents: object) -> tuple[list[Json], str | None]:
    """Return the messages with one more that has the documents, and what the router is to be told of it.

    That is None when there are no documents. Raises ArgumentError.
    """
    parts = document_parts(documents)
    if not parts:
        return list(messages), None
    place = next((at for at, each in enumerate(messages) if each.get("role") not in _HEAD), len(messages))
    message = {"role": "user", "content": parts}
    return [*messages[:place], message, *messages[place:]], f"doc={place}"


def document_parts(documents: object) -> list[dict[str, Any]]:
    """Return documents as the parts of a message's content, sorted, each once. Raises ArgumentError."""
    if not isinstance(documents, Sequence) or isinstance(documents, str | bytes):
        raise ArgumentError("documents", f"expected a list, got {shown(documents)}")
    found: dict[bytes, dict[str, Any]] = {}
    for index, document in enumerate(documents):
        part = _part(f"documents[{index}]", document)
        try:
            key = part["text"].encode()
        except UnicodeEncodeError:
            raise ArgumentError(f"documents[{index}]", "expected Unicode, got half of a surrogate pair") from None
        # Of doubles the one that is to be kept counts.
        if "cache_control" in part or key not in found:
            found[key] = part
    return [found[key] for key in sorted(found)]


def _part(field: str, document: object) -> dict[str, Any]:
    if isinstance(document, str):
        return {"type": "text", "text": text(field, document)}
    if not isinstance(document, Mapping):
        raise ArgumentError(field, f"expected a text, or an object with a text, got {shown(document)}")
    for name in document:
        if name not in _FIELDS:
            raise ArgumentError(f"{field}.{name}", f"unknown; known are {', '.join(_FIELDS)}")
    body = text(f"{field}.text", document.get("text"))
    part: dict[str, Any] = {"type": "text", "text": body}
    if (title := document.get("title")) is not None:
        part["text"] = f"{text(f'{field}.title', title)}\n\n{body}"
    if (mark := document.get("cache_control")) is not None:
        if not isinstance(mark, Mapping):
            raise ArgumentError(f"{field}.cache_control", f"expected an object, got {shown(mark)}")
        part["cache_control"] = dict(mark)
    return part
