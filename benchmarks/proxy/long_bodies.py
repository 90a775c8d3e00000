"""Bodies that are long, or hostile: made to keep a router from everybody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class LongBody(NamedTuple):
    """One body. name: for people."""

    name: str
    path: str
    body: bytes


def text_body(size: int, text: bytes = b"a") -> bytes:
    """Return a chat request of one message, of about `size` bytes."""
    return b'{"model":"mock","messages":[{"role":"user","content":"%b"}]}' % (text * (size // len(text)))


def hostile_bodies(size: int) -> Iterator[LongBody]:
    """Yield bodies of about `size` bytes: very many values in each field, and texts that are dear to decode."""

    def many(unit: bytes) -> bytes:
        return b"[%b]" % b",".join([unit] * (size // (len(unit) + 1)))

    messages = b'{"model":"mock","messages":[{"role":"user","content":"b"}],"%b":%b}'
    for name, unit in (("[]", b"[]"), ("{}", b"{}"), ("numbers", b"7"), ("strings", b'"ab"')):
        yield LongBody(f"{name} as messages", CHAT, b'{"model":"mock","messages":%b}' % many(unit))
    turns = many(b'{"role":"user","content":"b"}')
    yield LongBody("short messages", CHAT, b'{"model":"mock","messages":%b}' % turns)
    for field in (b"tools", b"documents", b"metadata", b"unread"):
        yield LongBody(f"[] in {field.decode()}", CHAT, messages % (field, many(b"[]")))
    yield LongBody("[] as model, another path", "/tokenize", b'{"model":%b}' % many(b"[]"))
    yield LongBody("[1] as prompt", COMPLETIONS, b'{"model":"mock","prompt":%b}' % many(b"[1]"))
    yield LongBody("token ids", COMPLETIONS, b'{"model":"mock","prompt":%b}' % many(b"12345"))
    keys = b",".join(b'"%x":1' % number for number in range(size // 12))
    yield LongBody("keys in metadata", CHAT, messages % (b"metadata", b"{%b}" % keys))
    for name, text in (("text", b"a"), ("escapes", b"\\n"), ("quotes", b'\\"'), ("emoji", "\U0001f600".encode())):
        yield LongBody(name, CHAT, text_body(size, text))
    image = b'[{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}]' % (b"A" * size)
    yield LongBody("image", CHAT, b'{"model":"mock","messages":[{"role":"user","content":%b}]}' % image)
