"""The access log of a real router's proxy: a line for each request, whoever answered it."""

from __future__ import annotations

from functools import partial

import pytest

from ghostcacher_router.prompt.parse import parse_body
from ghostcacher_router.types import Forecast
from tests.support.proxy_rig import on_loop, post, proxy_rig


@on_loop
async def test_access_log_names_request_worker_and_status(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each request, whoever answered it, without the query, where people put keys."""
    caplog.set_level("INFO", "ghostcacher_router.access")
    async with proxy_rig() as rig:
        rig.state.access_log = True
        await rig.ask(post(b"{}", b"X-Request-Id: mine-1").replace(b" HTTP", b"?key=secret HTTP", 1))
        await rig.ask(b"GET /local/x HTTP/1.1\r\nHost: router\r\n\r\n")
        await rig.ask(b"BAD\r\n\r\n")
    lines = [record.getMessage() for record in caplog.records]
    assert "secret" not in "".join(lines)
    assert lines[0].startswith('127.0.0.1 "POST /v1/chat/completions" 200 w0 ')
    assert lines[0].endswith(" ms mine-1")
    assert lines[1].startswith('127.0.0.1 "GET /local/x" 200 - ')
    assert lines[2].startswith('127.0.0.1 "-" 400 - ')


@on_loop
async def test_access_log_says_what_was_forecast_and_what_came(caplog: pytest.LogCaptureFixture) -> None:
    """As fields, for whoever reads it with a program, and in the line for people; nothing where there is nothing."""
    caplog.set_level("INFO", "ghostcacher_router.access")
    async with proxy_rig() as rig:
        rig.state.access_log = True
        rig.dispatcher.forecast = Forecast("w0", 30.0, 5.0, 0.0, 0.0, 7.34, 0.0, 8.0, 9.66, 64, 16, 20)
        await rig.ask(post(b"{}", b"X-Request-Id: mine-1"))
        rig.engine.script = lambda peer, _: peer.abort()
        await rig.ask(post(b"{}", b"X-Request-Id: mine-2"))
    fields = [record.gc_fields for record in caplog.records]
    assert {name: value for name, value in fields[0].items() if name != "took_ms"} == {
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "worker": "w0",
        "reason": "only",
        "forecast_ms": 12.3,
        "ttft_ms": None,
        "cached_tokens": 80,
        "request_id": "mine-1",
    }
    assert " w0 only, forecast 12.3 ms, TTFT - ms, cached 80 tokens, " in caplog.records[0].getMessage()
    assert not {"prompt_bytes", "prompt_tokens", "prefix"} & fields[0].keys()
    assert (fields[1]["status"], fields[1]["worker"], fields[1]["reason"], fields[1]["request_id"]) == (
        502,
        None,
        None,
        "mine-2",
    )


@on_loop
async def test_access_log_names_the_beginning_of_prompts_where_that_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    """One digest for each whole KiB: two prompts have those of their common KiBs. Nothing of a request without one."""
    caplog.set_level("INFO", "ghostcacher_router.access")
    async with proxy_rig() as rig:
        rig.state.access_log = rig.state.access_log_prompts = True
        rig.state.parse = partial(parse_body, seed=7)
        for end in (b"x" * 1_500, b"y" * 600):
            await rig.ask(
                post(b'{"model": "m", "messages": [{"role": "user", "content": "%b"}]}' % (b"a" * 2_100 + end))
            )
        await rig.ask(b"GET /local/x HTTP/1.1\r\nHost: router\r\n\r\n")
    first, second, none = (record.gc_fields for record in caplog.records)
    assert (first["prompt_bytes"] > 3_600, first["prompt_tokens"], len(first["prefix"])) == (True, None, 3)
    assert (second["prompt_bytes"] - first["prompt_bytes"], len(second["prefix"])) == (600 - 1_500, 2)
    assert first["prefix"][:2] == second["prefix"]
    assert len({*first["prefix"]}) == 3
    assert {len(bytes.fromhex(digest)) for digest in first["prefix"]} == {8}
    assert (none["prompt_bytes"], none["prefix"]) == (None, None)
    assert "aaaa" not in str([record.__dict__ for record in caplog.records])
