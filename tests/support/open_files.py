"""Many open files in a test's process: what still works then, and how they are kept from becoming more."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
from collections.abc import Iterator
from typing import IO

import pytest

OPEN_FILES_MAX = 300
"""Most systems give a process 1,024; an agent of NIXL has 8 to 16 for each of its peers."""


def wait_readable(stream: IO[bytes], timeout_s: float) -> bool:
    """Return whether there is something to read; waits for it. Unlike select() it takes any descriptor."""
    waiting = select.poll()
    waiting.register(stream, select.POLLIN)
    return bool(waiting.poll(max(0.0, timeout_s) * 1000))


def close_forgotten() -> None:
    """Collect garbage when many files are open: agents of engines that refer to themselves keep theirs until then."""
    if len(os.listdir("/proc/self/fd")) > OPEN_FILES_MAX:
        gc.collect()


@contextlib.contextmanager
def many_files_open(count: int) -> Iterator[None]:
    """Have so many files open; skips where the system does not let us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OPEN_FILES_MAX
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, and this process may have {hard}")
    with contextlib.ExitStack() as files:
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(count):
            files.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        yield
