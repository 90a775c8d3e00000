"""Daemon threads that ``top -H``, ``ps -L`` and profilers show by name."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

NAME_CHARS_MAX = 15
"""The kernel keeps no more of a thread's name."""


def daemon_thread(name: str, target: Callable[[], object]) -> threading.Thread:
    """Return a daemon thread, to be started. Its name begins with ``gc-``."""
    return threading.Thread(target=_run, args=(name, target), name=name, daemon=True)


def _run(name: str, target: Callable[[], object]) -> None:
    # Python before 3.14 keeps the name to itself. Without /proc the thread goes without.
    with contextlib.suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:NAME_CHARS_MAX], encoding="utf-8")
    target()
