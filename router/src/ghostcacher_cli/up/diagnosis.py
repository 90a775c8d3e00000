"""Whether a server answers, how far its start is, and why it failed: read from outside, and from its log."""

from __future__ import annotations

import re
import signal
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from ghostcacher_cli.loopback_http import open_url

CAUSES_MAX = 3
TAIL_LINES = 30
TAIL_LINES_WITH_CAUSE = 10
SIGNAL_STATUS_BASE = 128
"""A process that died of signal n is reported with status 128 + n, as shells do."""

_HINTS = (
    (
        r"address already in use",
        "another process took the port each time: run it again, or look for a program that opens very many ports",
    ),
    (
        r"Failed core proc\(s\): \{.*: -9\b",
        "a process of the engine was killed, mostly by the system for want of memory: use a smaller model or KV cache",
    ),
    (
        r"engine core exited unexpectedly",
        "if the log has no error of it, the engine's process was killed, mostly by the system for want of memory",
    ),
    (r"(?i)out of memory|cannot allocate memory|bad_alloc", "memory is short: use a smaller model or KV cache"),
    (r"No module named '?vllm", "vLLM is not installed in this environment: docs/getting-started.md says how"),
    (
        r"\b(?:LocalEntryNotFound|RepositoryNotFound|GatedRepo|OfflineModeIsEnabled)(?:Error)?:",
        "the model cannot be had from Hugging Face: look at its name, the network, HF_TOKEN and HF_HUB_OFFLINE",
    ),
    (r"No available memory for the cache blocks", "the KV cache does not fit: give it more memory or fewer blocks"),
    (
        r"larger than the available KV cache memory",
        "the KV cache must hold max_model_len tokens: lower that, or raise it",
    ),
)

_CAUSE = re.compile(
    r"^(?:\(\w+ pid=\d+\) )?(?:ERROR [^]]*\] )?(?P<error>(?:\w+\.)*\w*(?:Error|Engine): .+)$", re.MULTILINE
)

_ROUTE = re.compile(r"\bRoute: /")
"""vLLM logs each of its routes when it starts: dozens of lines that would hide the last words of the engine."""


def answers(url: str, *, timeout_s: float = 2.0) -> bool:
    """Say whether a server answers 200 there, within `timeout_s`."""
    try:
        request = urllib.request.Request(url)  # noqa: S310 - of our own making
        with open_url(request, timeout_s=timeout_s) as reply:
            return reply.status == 200  # noqa: PLR2004
    except (OSError, HTTPException):
        return False


def exit_text(status: int) -> str:
    """Return how a process ended, in words: by itself, or by which signal, which a status above 128 stands for."""
    ended = f"ended with status {status}"
    number = status - SIGNAL_STATUS_BASE
    if number not in set(signal.Signals):
        return ended
    if number == signal.SIGKILL:
        return f"{ended} (128 + 9: it was killed, mostly by the system's out-of-memory killer)"
    return f"{ended} (128 + {number}: {signal.Signals(number).name})"


def explain(what: str, log: str, path: Path) -> str:
    """Return a message that begins with the reason: in an engine's log it stands far above the last traceback.

    what: the first line. log: the end of the log at `path`, some hundred lines.
    """
    causes = list(dict.fromkeys(found["error"] for found in _CAUSE.finditer(log)))[:CAUSES_MAX]
    hints = [f"Likely: {hint}" for pattern, hint in _HINTS if re.search(pattern, log)]
    lines = [line for line in log.splitlines() if not _ROUTE.search(line)]
    tail = lines[-(TAIL_LINES_WITH_CAUSE if causes else TAIL_LINES) :]
    return "\n".join([what, *causes, *hints, f"End of {path}:", *tail])
