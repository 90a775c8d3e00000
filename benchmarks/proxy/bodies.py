"""Request bodies: chat requests about source code, a long system prompt that many share, a question that none does."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import subprocess
from pathlib import Path
from types import ModuleType

MARK = "@" * 16
"""In each body once, at the beginning of the question: the load generator puts a number of its own there."""

PROJECTS = 64
"""Different system prompts."""

MODEL = "mock"
CORPUS: tuple[ModuleType, ...] = (argparse, ast, inspect, subprocess, json.decoder, json.encoder)


def escaped(text: str) -> str:
    """Return the text as it stands between the quotes of a JSON string."""
    return json.dumps(text)[1:-1]


def fitted(text: str, size: int) -> str:
    """Return the beginning of the text, filled up with dots, so that it is exactly `size` bytes in JSON."""
    low, high = 0, min(len(text), size)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(escaped(text[:middle])) <= size else (low, middle - 1)
    return text[:low] + "." * (size - len(escaped(text[:low])))


def corpus() -> str:
    """Return source code, with all the quotes, tabs and line ends that JSON has to escape."""
    return "\n".join(Path(module.__file__ or "").read_text() for module in CORPUS)


def chat_body(source: str, project: int, size: int, *, stream: bool) -> bytes:
    """Return one request of exactly `size` bytes: about seven parts of system prompt, one part of question."""
    turned = source[project * 997 % len(source) :] + source

    def packed(system: str, question: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        return json.dumps({"model": MODEL, "messages": messages, "max_tokens": 16, "stream": stream})

    lead, ask = f"You work on project {project}. Its sources:\n", f"{MARK} What does this do?\n"
    room = size - len(packed(lead, ask))
    if room < 0:
        raise ValueError(f"size of a body: expected at least {size - room} bytes, got {size}")
    system = lead + fitted(turned, room * 7 // 8)
    question = ask + fitted(turned[len(system) :], size - len(packed(system, ask)))
    return packed(system, question).encode()


def write_bodies(target: Path, size: int, *, stream: bool) -> None:
    """Write one body for each project, one after the other, without anything between them."""
    source = corpus()
    target.write_bytes(b"".join(chat_body(source, project, size, stream=stream) for project in range(PROJECTS)))
