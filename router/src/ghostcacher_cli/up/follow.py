"""What a growing log says: its new lines, and how far the start of an engine is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ghostcacher_cli.terminal.text import printable

READ_BYTES_MAX = 64 << 10
"""Read of one log at a time: a flood of lines must not hold up what else is watched."""
LINE_BYTES_MAX = 8 << 10
"""A longer line is shown in pieces."""

_PHASES = (
    (r"Application startup complete|Starting vLLM server", "opening its port"),
    (r"Capturing CUDA graphs?[^\r\n]*?(\d+)%", "capturing graphs, {}%"),
    (r"Capturing CUDA graph", "capturing graphs"),
    (r"KV cache size", "warming up"),
    (r"Compiling a graph|Dynamo bytecode transform", "compiling"),
    (r"Loading weights took", "preparing its cache"),
    (r"Loading [^\r\n]*checkpoint shards:\s+(\d+)%", "loading weights, {}%"),
    (r"Starting to load model", "loading weights"),
    (r"Initializing a V1 LLM engine", "starting its processes"),
    (r"non-default args", "reading the model's configuration"),
)
"""Latest first: the first that the log has, wins. Seen in the logs of vLLM 0.32."""


def phase_of(log: str) -> str:
    """Say in a few words how far an engine's start is."""
    for pattern, words in _PHASES:
        found = re.findall(pattern, log)
        if found:
            return words.format(found[-1])
    return "starting"


class LogFollower:
    """Reads the new lines of one log after the other, from a file that may not be there yet."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._path: Path | None = None
        self._offset = 0
        self._rest = b""

    def new_lines(self, path: Path) -> list[str]:
        """Return the whole lines that came since, each with its name before it. Another path is begun anew."""
        if path != self._path:
            self._path, self._offset, self._rest = path, 0, b""
        try:
            with path.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read(READ_BYTES_MAX)
        except OSError:
            return []
        self._offset += len(data)
        *whole, self._rest = re.split(rb"[\r\n]+", self._rest + data)
        if len(self._rest) > LINE_BYTES_MAX:
            whole, self._rest = [*whole, self._rest], b""
        return [f"[{self._name}] {printable(line.decode(errors='replace'))}" for line in whole if line]


def tail(path: Path, size: int = READ_BYTES_MAX) -> str:
    """Return the end of a log; empty when there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
