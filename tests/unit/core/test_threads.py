"""Threads that the kernel knows by name."""

from __future__ import annotations

import threading
from pathlib import Path

from ghostcacher_connector.core.threads import daemon_thread


def test_thread_bears_its_name_for_the_kernel() -> None:
    """What top and profilers show of it is the name that it was given, as far as the kernel keeps it."""
    seen: list[str] = []

    def look() -> None:
        seen.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text())

    thread = daemon_thread("gc-with-a-long-name", look)
    thread.start()
    thread.join()
    assert thread.daemon
    assert seen == ["gc-with-a-long-\n"]
