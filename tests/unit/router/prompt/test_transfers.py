"""What names another engine in a request is found, however it is read: engines would connect to it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ghostcacher_router.prompt import not_from_clients, parse_body, parse_head, parse_now
from tests.support.prompts import CHAT, COMPLETIONS, KNOWN, SEED, say

GENERATE = "/inference/v1/generate"
PATHS = (*KNOWN, GENERATE, "/v2/chat")
LONG = {"remote_block_ids": list(range(5_000))}


def named(path: str, body: bytes, headers: dict[bytes, bytes] | None = None) -> str | None:
    """Return by what a request names another engine, and make sure that all ways of reading agree."""
    given = headers or {}
    shape = parse_now(path, body, given, SEED)
    assert shape is not None
    assert (parse_head(path, body, given).names_engine is None) == (shape.names_engine is None)
    assert parse_body(path, body, given, SEED).names_engine == shape.names_engine
    return shape.names_engine


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [say("user", "x")], "prompt": "x", "input": "x", **fields}).encode()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"kv_transfer_params": {"gc_pull": False, "remote_host": "h"}}, "kv_transfer_params.remote_host"),
        ({"kv_transfer_params": {"remote_kv_source": {"remote_host": "h"}}}, "kv_transfer_params.remote_kv_source"),
        ({"kv_transfer_params": {"do_remote_decode": True}}, "kv_transfer_params.do_remote_decode"),
        ({"kv_transfer_params": "h:1"}, "kv_transfer_params"),
        ({"ec_transfer_params": {"gc_pull": False}}, "ec_transfer_params.gc_pull"),
        ({"vllm_xargs": {"kv_transfer_params": "h"}}, "vllm_xargs.kv_transfer_params"),
        ({"vllm_xargs": {"ec_transfer_params": ["h"]}}, "vllm_xargs.ec_transfer_params"),
        ({"bootstrap_host": "h"}, "bootstrap_host"),
        ({"bootstrap_host": ["h", "h"]}, "bootstrap_host"),
    ],
)
def test_request_that_names_an_engine_is_known_by_the_field(path: str, fields: dict[str, Any], name: str) -> None:
    assert named(path, body_of(**fields)) == name


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kv_transfer_params": None, "ec_transfer_params": None, "vllm_xargs": None, "bootstrap_host": None},
        {"kv_transfer_params": {}, "ec_transfer_params": {}, "vllm_xargs": {}},
        {"kv_transfer_params": {"gc_pull": False, "gc_retain_s": 60}},
        {"vllm_xargs": {"custom": "x" * 5_000, "kv_transfer_params": None}},
        {"sampling_params": {"extra_args": None, "stop": ["x" * 5_000]}},
        {"sampling_params": {"extra_args": {"custom": [1] * 5_000, "kv_transfer_params": {"gc_pull": False}}}},
        {"sampling_params": [{"temperature": 1}]},
    ],
)
def test_what_names_nobody_is_no_name(path: str, fields: dict[str, Any]) -> None:
    assert named(path, body_of(**fields)) is None


@pytest.mark.parametrize("path", PATHS)
def test_long_field_names_an_engine(path: str) -> None:
    assert (named(path, body_of(kv_transfer_params=LONG)) or "").startswith("kv_transfer_params")


def test_arguments_within_the_sampling_parameters_are_read() -> None:
    """Of vLLM's API for tokens, which hands them on as they are."""
    fields = {"sampling_params": {"temperature": 0, "extra_args": {"kv_transfer_params": {"remote_port": 1}}}}
    assert named(GENERATE, body_of(**fields)) == "sampling_params.extra_args.kv_transfer_params.remote_port"


@pytest.mark.parametrize("path", [CHAT, GENERATE])
@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [], "kv_transfer_\\u0070arams": {"remote_host": "h"}}',
        b'{"messages": [], "kv_transfer_params": null, "kv_transfer_params": {"remote_host": "h"}}',
        b'{"messages": [], "temperature": NaN, "kv_transfer_params": {"remote_host": "h"}}',
        '{"messages": [], "kv_transfer_params": {"remote_host": "h"}}'.encode("utf-16"),
    ],
)
def test_field_is_found_as_engines_read_it(path: str, body: bytes) -> None:
    """Escaped, the last of two, and in what is no strict JSON."""
    assert named(path, body) == "kv_transfer_params.remote_host"


@pytest.mark.parametrize("path", [COMPLETIONS, GENERATE])
def test_header_of_sglang_names_an_engine(path: str) -> None:
    assert named(path, body_of(), {b"x-override-bootstrap-host": b"h"}) == "x-override-bootstrap-host"


def test_client_is_told_a_bounded_name() -> None:
    found = named(CHAT, body_of(kv_transfer_params={"x" * 1_000: 1}))
    assert found == "kv_transfer_params." + "x" * 64
    assert not_from_clients(found).startswith(f"Invalid value for '{found}': expected none")
