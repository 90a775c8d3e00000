"""Long bodies are parsed in a real process of their own, which may be killed, run out of memory, or lose its router."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ghostcacher_router.parsing import parser_process
from ghostcacher_router.parsing.messages import ParseAsk
from ghostcacher_router.parsing.parser import BODY_COPIES, MEMORY_BYTES, BodyParser
from ghostcacher_router.parsing.parser_process import ParserFailed, ParserProcess
from ghostcacher_router.prompt import BadBody, parse_body
from ghostcacher_router.prompt.parse import NOW_BYTES_MAX, NOW_ITEMS_MAX
from ghostcacher_router.types import Body, LongBody, RequestShape
from tests.support.index_parts import wait_until
from tests.support.prompts import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, SEED, say
from tests.support.proxy_rig import on_loop

MIB = 1 << 20
PIECE_BYTES = 300_000
LONG = "lorem ipsum dolor sit amet " * (NOW_BYTES_MAX // 20)
BODIES = {
    CHAT: {"messages": [say("system", LONG), say("user", "é\U0001f600")], "tools": [{"name": "f"}]},
    MESSAGES: {"system": "x-anthropic-billing-header: a\ns", "messages": [say("user", LONG)]},
    RESPONSES: {"input": LONG, "previous_response_id": "resp_1", "store": False},
    COMPLETIONS: {"prompt": list(range(200_000))},
    EMBEDDINGS: {"input": LONG},
    "/v1/audio/speech": {"input": LONG},
}


@asynccontextmanager
async def parser(body_bytes_max: int = 64 * MIB) -> AsyncIterator[BodyParser]:
    parser = BodyParser(body_bytes_max)
    try:
        yield parser
    finally:
        parser.stop()


def in_pieces(body: bytes) -> LongBody:
    return LongBody([body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES)])


async def parsed(parser: BodyParser, path: str, body: Body, kept: frozenset[str | None] = frozenset()) -> RequestShape:
    """Return a shape that must be waited for."""
    found = parser.parse(path, body, {b"x-session-id": b"s"}, SEED, kept)
    assert not isinstance(found, RequestShape)
    return await found


def pid_of(parser: BodyParser) -> int:
    pid = parser._process.pid
    assert pid is not None
    return pid


@on_loop
async def test_long_body_has_the_same_shape_as_in_this_process() -> None:
    """All that routing needs comes back: prompt, session, stored ids; and what the models keep goes there."""
    async with parser() as one:
        for path, fields in BODIES.items():
            body = json.dumps({"model": "m", "stream": True, **fields}).encode()
            for kept in (frozenset[str | None](), frozenset({"m", None})):
                found = await parsed(one, path, in_pieces(body), kept)
                assert (
                    found
                    == await parsed(one, path, body, kept)
                    == parse_body(path, body, {b"x-session-id": b"s"}, SEED, kept)
                )
                assert found.prompt is not None or path not in BODIES or path == "/v1/audio/speech"


@on_loop
async def test_short_body_is_parsed_at_once_and_starts_nothing() -> None:
    """Unless it has very many parts."""
    async with parser() as one:
        assert isinstance(one.parse(CHAT, b'{"messages": []}', {}, SEED), RequestShape)
        assert one._process.pid is None
        turns = ",".join(['{"role":"user","content":"x"}'] * (NOW_ITEMS_MAX + 1))
        found = await parsed(one, CHAT, f'{{"messages":[{turns}]}}'.encode())
        assert found.prompt is not None


@on_loop
async def test_bad_body_is_refused_by_name() -> None:
    """As at once."""
    async with parser() as one:
        for body, param in (
            (f'{{"model": 5, "x": "{LONG}"}}', "model"),
            (f'{{"messages": [5], "x": "{LONG}"}}', "messages[0]"),
            (f'{{"messages": [], "x": "{LONG}", "y": {"[" * 500}{"]" * 500}}}', None),
            (f'{{"messages": [], "x": "{LONG}"', None),
        ):
            with pytest.raises(BadBody) as caught:
                await parsed(one, CHAT, body.encode())
            assert caught.value.param == param


@on_loop
async def test_nothing_of_a_long_body_is_built_in_this_process() -> None:
    """Neither objects nor copies: what is allocated here is a small part of the body."""
    body = in_pieces(b'{"model":"m","messages":[' + b"[]," * (8 * MIB // 3) + b"[]]}")
    text = in_pieces(b'{"model":"m","messages":[{"role":"user","content":"' + b"\\n" * (4 * MIB) + b'"}]}')
    async with parser() as one:
        await parsed(one, CHAT, text)
        tracemalloc.start()
        try:
            with pytest.raises(BadBody, match="too many parts"):
                await parsed(one, CHAT, body)
            assert (await parsed(one, CHAT, text)).prompt is not None
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak_bytes < MIB


@on_loop
async def test_loop_goes_on_while_a_body_is_parsed() -> None:
    """What was called for before the answer runs before it, though the process is stopped in its tracks."""
    body = json.dumps({"model": "m", "prompt": LONG}).encode()
    async with parser() as one:
        await parsed(one, COMPLETIONS, body)
        os.kill(pid_of(one), signal.SIGSTOP)
        task = asyncio.ensure_future(parsed(one, COMPLETIONS, body))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not task.done()
        os.kill(pid_of(one), signal.SIGCONT)
        assert (await task).prompt is not None


@on_loop
async def test_body_that_nobody_wants_any_more_is_let_go_of() -> None:
    """At once, though others are parsed before it: clients that come and leave would else fill the memory."""
    first, second = (in_pieces(json.dumps({"model": "m", "prompt": LONG}).encode()) for _ in range(2))
    held = sys.getrefcount(second)
    async with parser() as one:
        await parsed(one, COMPLETIONS, first)
        os.kill(pid_of(one), signal.SIGSTOP)
        waiting = [one.parse(COMPLETIONS, body, {}, SEED) for body in (first, second)]
        left = waiting.pop()
        assert isinstance(left, asyncio.Future)
        assert sys.getrefcount(second) > held
        left.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del left
        assert sys.getrefcount(second) == held
        os.kill(pid_of(one), signal.SIGCONT)
        for shape in waiting:
            assert not isinstance(shape, RequestShape)
            assert (await shape).prompt is not None


@on_loop
async def test_shorter_body_does_not_wait_for_longer_ones_that_came_before() -> None:
    """Only for the one that is being parsed."""
    done = []
    async with parser() as one:

        async def parse(name: str, size: int) -> None:
            await parsed(one, COMPLETIONS, b'{"model":"m","prompt":"%b"}' % (b"x" * size))
            done.append(name)

        await parse("first", MIB)
        os.kill(pid_of(one), signal.SIGSTOP)
        tasks = []
        for name, size in (("under way", MIB), ("longest", 40 * MIB), ("long", 20 * MIB), ("short", MIB)):
            tasks.append(asyncio.ensure_future(parse(name, size)))
            await asyncio.sleep(0)
        os.kill(pid_of(one), signal.SIGCONT)
        await asyncio.gather(*tasks)
    assert done == ["first", "under way", "short", "long", "longest"]


@on_loop
async def test_killed_process_costs_one_prompt_and_no_request() -> None:
    """The model is found all the same; the next body finds another process."""
    body = json.dumps({"model": "m", "stream": True, "user": "u", "prompt": LONG}).encode()
    async with parser() as one:
        await parsed(one, COMPLETIONS, body)
        first = pid_of(one)
        os.kill(first, signal.SIGSTOP)
        task = asyncio.ensure_future(parsed(one, COMPLETIONS, body))
        await asyncio.sleep(0)
        os.kill(first, signal.SIGKILL)
        assert await task == RequestShape("m", True, None, "s")
        assert (await parsed(one, COMPLETIONS, body)).prompt is not None
        assert pid_of(one) != first


@on_loop
async def test_body_that_takes_too_much_memory_is_not_understood() -> None:
    """The process says so, and goes on."""
    body = json.dumps({"model": "m", "prompt": "x" * (35 * MIB)}).encode()
    short = json.dumps({"model": "m", "prompt": LONG}).encode()
    ask = ParseAsk(COMPLETIONS, {}, SEED, frozenset())
    process = ParserProcess(128 * MIB)
    try:
        assert process.parse(ask, short).result() is not None
        pid = process.pid
        assert process.parse(ask, body).result() is None
        assert process.parse(ask, short).result() is not None
        assert process.pid == pid
    finally:
        process.close()


@pytest.mark.parametrize("size", [64 * MIB])
def test_memory_suffices_for_the_worst_body(size: int) -> None:
    """One text with a character that makes Python use four bytes for each; and as many values as are decoded."""
    process = ParserProcess(MEMORY_BYTES + BODY_COPIES * size)
    try:
        start = b'{"model":"m","prompt":"\xf0\x9f\x98\x80'
        found = process.parse(
            ParseAsk(COMPLETIONS, {}, SEED, frozenset()), start + b"a" * (size - len(start) - 2) + b'"}'
        )
        assert found.shape is not None
        assert found.shape.prompt is not None
        values = b'{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{%b}}' % b",".join(
            b'"%x":1' % number for number in range(1_000_000)
        )
        found = process.parse(ParseAsk(CHAT, {}, SEED, frozenset()), values)
        assert found.shape is not None
        assert found.shape.prompt is not None
    finally:
        process.close()


def test_process_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads what strangers send, and needs none of our settings."""
    monkeypatch.setenv("GC_INDEX_KEY", "a secret of the fleet")
    process = ParserProcess(256 * MIB)
    try:
        process.parse(ParseAsk(COMPLETIONS, {}, SEED, frozenset()), b"{}")
        names = {line.partition(b"=")[0] for line in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")}
    finally:
        process.close()
    assert b"PATH" in names
    assert [name for name in names if name.startswith(b"GC_")] == []


def test_process_that_hangs_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for no longer than the worst body takes."""
    ask = ParseAsk(COMPLETIONS, {}, SEED, frozenset())
    process = ParserProcess(256 * MIB)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(parser_process, "SILENCE_S_MAX", 1)
            process.start()
        hung = process.pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(ParserFailed, match="did not answer"):
            process.parse(ask, b"{}")
        assert not Path(f"/proc/{hung}").exists()
        process.parse(ask, b"{}")
        assert process.pid not in (hung, None)
    finally:
        process.close()


def test_interrupt_of_a_terminal_ends_no_parsing() -> None:
    """Every process of the terminal gets it; the router's requests in flight may still need this one."""
    ask = ParseAsk(COMPLETIONS, {}, SEED, frozenset())
    process = ParserProcess(256 * MIB)
    try:
        process.parse(ask, b"{}")
        child = process.pid
        assert child is not None
        os.kill(child, signal.SIGINT)
        process.parse(ask, b"{}")
        assert process.pid == child
    finally:
        process.close()


def test_closed_parser_process_starts_no_other() -> None:
    process = ParserProcess(256 * MIB)
    process.start()
    process.close()
    with pytest.raises(ParserFailed, match="closed"):
        process.start()
    assert process.pid is None


def test_parser_process_that_is_closed_while_it_starts_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that is stopped at once: neither a child nor a socket stays behind."""
    process = ParserProcess(256 * MIB)
    children: list[subprocess.Popen[bytes]] = []
    closer = threading.Thread(target=process.close)

    def popen(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        closer.start()
        closer.join(0.5)
        children.append(real(*args, **kwargs))
        return children[0]

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", popen)
    process.start()
    closer.join()
    assert process.pid is None
    assert [child.poll() for child in children] == [-signal.SIGKILL]


PROGRAM = """
import sys, time
from ghostcacher_router.parsing.parser_process import ParserProcess
process = ParserProcess(1 << 30)
process.start()
print(process.pid, flush=True)
time.sleep(600)
"""


def test_process_ends_with_its_router(tmp_path: Path) -> None:
    """However that ends."""
    owner = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, cwd=tmp_path)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    owner.stdout.close()
    owner.kill()
    owner.wait()
    wait_until(lambda: not Path(f"/proc/{child}").exists())
