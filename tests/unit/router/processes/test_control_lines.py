"""The lines between a supervisor and its processes: what cannot be read ends no channel."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import cast

import msgspec
import pytest

from ghostcacher_router.http.proxy import HttpProxy
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.processes.control_lines import LINE_BYTES_MAX, ControlLines
from ghostcacher_router.processes.ended_counts import Ended
from ghostcacher_router.processes.membership import Told
from tests.support.proxy_rig import on_loop
from tests.support.router_child import member, supervised

LIMIT = 16


def told_of(name: str) -> bytes:
    """Return the line by which a supervisor says that it has what the process of a name had counted."""
    return b"ended " + msgspec.json.encode(Ended((name,))) + b"\n"


async def heard(data: bytes, step: int) -> list[bytes]:
    """Return the lines of what comes `step` bytes at a time."""
    reader = asyncio.StreamReader(limit=LIMIT)
    lines, found = ControlLines(reader, "process 0.1"), list[bytes]()

    async def read() -> None:
        while line := await lines.next():
            found.append(line)

    reading = asyncio.create_task(read())
    for place in range(0, len(data), step):
        reader.feed_data(data[place : place + step])
        await asyncio.sleep(0)
    reader.feed_eof()
    await reading
    return found


@on_loop
@pytest.mark.parametrize("step", [1, 7, LIMIT, LIMIT + 1, 1000])
@pytest.mark.parametrize("too_long", [LIMIT + 1, LIMIT + 2, 5 * LIMIT])
async def test_only_lines_that_are_too_long_are_left_out(
    step: int, too_long: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole, so that the rest of one is no line; the first of them is logged, with its size."""
    longest, long = b"a" * LIMIT + b"\n", b"b" * (too_long - 5) + b"alive\n"
    with caplog.at_level(logging.INFO):
        found = await heard(b"first\n" + longest + long + b"\n" + longest + long + long + b"last\npart", step)
    assert found == [b"first\n", longest, b"\n", longest, b"last\n", b"part"]
    assert [
        f"process 0.1 is left out, as each such line will be: expected at most {LINE_BYTES_MAX}" in text
        for text in caplog.messages
    ] == [True]
    assert caplog.messages[0].endswith(f"got {len(long)}")


@on_loop
async def test_line_that_is_too_long_and_breaks_off_is_no_line() -> None:
    """The sender was killed meanwhile."""
    assert await heard(b"first\n" + b"b" * 5 * LIMIT, 7) == [b"first\n"]


@on_loop
async def test_supervisor_hears_a_process_after_a_line_that_is_too_long() -> None:
    child, theirs = await supervised(limit=LIMIT)
    theirs.sendall(b"counted " + b"x" * 100 + b"\ncounted {}\nready\n")
    assert await child.wait_until_ready(60.0)
    assert child.counted == b"{}\n"
    theirs.close()
    assert await child.has_said_all(60.0)
    child.ended.cancel()


@on_loop
@pytest.mark.parametrize(
    "line", [b"ended {", b"ended []", b"adopt two", b"adopt 7", b"\xff", b"ended " + b"x" * LINE_BYTES_MAX]
)
async def test_process_hears_its_supervisor_after_what_it_does_not_understand(tmp_path: Path, line: bytes) -> None:
    """It would never leave otherwise."""
    membership, _, _, writer = await member(tmp_path, RouterMetrics())
    left, ended = asyncio.Event(), asyncio.Event()

    async def leave() -> None:
        left.set()

    await membership.follow(cast(HttpProxy, None), Told(leave, ended.set))
    writer.write(line + b"\nleave\n" + told_of("0.1"))
    async with asyncio.timeout(60.0):
        await ended.wait()
    assert left.is_set()
    await membership.stop()
    writer.close()
