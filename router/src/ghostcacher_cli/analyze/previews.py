"""How a block begins, for people: read again from the line of the file that brought it."""

from __future__ import annotations

import re
from array import array
from pathlib import Path

from ghostcacher_cli.analyze.formats import ID_BYTES, read_line
from ghostcacher_cli.analyze.traces import Trace, piece_bytes
from ghostcacher_cli.terminal.text import printable
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.prompt.assembly import DOCUMENTS, EXTRA, MEDIA, OTHER, ROLE, TEXT, TOOLS

SHOWN_BYTES = 240
SHOWN_IDS = 8
_FRAMES = {
    TEXT: b": ",
    TOOLS: b" tools: ",
    DOCUMENTS: b" documents: ",
    ROLE: b" ",
    EXTRA: b" ",
    OTHER: b" ",
    MEDIA: b" (medium) ",
}
_FRAME = re.compile(b"[" + re.escape(b"".join(_FRAMES)) + b"]")


class Previews:
    """Reads beginnings of blocks from the file of a trace."""

    def __init__(self, path: Path, trace: Trace, bytes_per_token: float) -> None:
        self._path = path
        self._trace = trace
        self._bytes_per_token = bytes_per_token

    def beginning_of(self, block: int) -> str:
        """Return how a block begins: its text, its token ids, or its hash. Raises ConfigError when the file is gone."""
        trace = self._trace
        request = trace.first_seen[block]
        try:
            with self._path.open("rb") as file:
                file.seek(trace.offsets[request])
                data = read_line(trace.kind, file.readline()).data
        except OSError as exc:
            raise ConfigError(f"FILE: {self._path} cannot be read: {exc.strerror or exc}") from exc
        depth = trace.depth_of[block]
        if not isinstance(data, bytes):
            return f"block {data[depth]}"
        tokens = depth * trace.block_tokens
        if trace.kind.unit == "ids":
            ids = array("I", data[tokens * ID_BYTES : (tokens + SHOWN_IDS) * ID_BYTES])
            return " ".join(map(str, ids))
        start = depth * piece_bytes(trace.block_tokens, self._bytes_per_token)
        return readable(data[start : start + SHOWN_BYTES])


def readable(piece: bytes) -> str:
    """Return a piece of canonical text in one line: frames of messages as words, cut characters and others left out."""
    text = _FRAME.sub(lambda frame: _FRAMES[frame[0]], piece).decode(errors="ignore")
    return " ".join(printable(text.replace("\n", " ").replace("\r", " ")).split()).removeprefix(": ")
