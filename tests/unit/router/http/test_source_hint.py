"""What a worker is told of whom to pull from, in the form in which vLLM's P2P tier reads it."""

from __future__ import annotations

import json

import pytest

from ghostcacher_router.http.exchanges.source_hint import BODY_BYTES_MAX, with_source
from ghostcacher_router.types import Body, KvSource, LongBody

CHAT = "/v1/chat/completions"
SOURCE = KvSource("10.0.0.7", 5710)
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "}"}]} \n'


def params_of(body: Body) -> object:
    assert isinstance(body, bytes)
    return json.loads(body)["kv_transfer_params"]


@pytest.mark.parametrize("body", [BODY, LongBody([BODY[:9], BODY[9:]])])
def test_source_is_put_behind_what_the_client_wrote(body: Body) -> None:
    """And nothing else changes."""
    told = with_source(body, CHAT, SOURCE, "r1")
    named = {"kv_request_id": "r1", "remote_host": "10.0.0.7", "remote_port": 5710}
    assert params_of(told) == {"remote_kv_source": named}
    assert isinstance(told, bytes)
    assert {key: value for key, value in json.loads(told).items() if key != "kv_transfer_params"} == json.loads(BODY)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a", "kv_transfer_params": {"gc_pull": false}}',
        b'{"prompt": "a", "kv_transfer_params": {}}',
        b"{}",
        b"{ }",
        b"[1]",
        b'{"prompt": "a"',
        b'{"prompt": "a"}x',
        b"",
        b'{"prompt": "' + b"x" * BODY_BYTES_MAX + b'"}',
    ],
)
def test_body_goes_as_it_came_where_nothing_can_be_put_in(body: bytes) -> None:
    """What a client has put there is its own; what cannot be read is for the engine to refuse."""
    assert with_source(body, CHAT, SOURCE, "r1") is body


def test_other_paths_are_left_alone() -> None:
    """Engines know the field in these two APIs."""
    assert with_source(BODY, "/v1/embeddings", SOURCE, "r1") is BODY


def test_field_that_is_null_is_free() -> None:
    """As if the client had not written it: of two fields of one name the last one counts."""
    assert params_of(with_source(b'{"prompt": "a", "kv_transfer_params": null}', CHAT, SOURCE, "r1"))


@pytest.mark.engine
def test_vllm_takes_it_for_a_source_to_be_asked() -> None:
    """Its P2P tier parses the field: a peer that is asked what it has, and not one that must have it."""
    manager = pytest.importorskip("vllm.v1.kv_offload.tiering.p2p.manager")
    parsed = manager._parse_source(params_of(with_source(BODY, CHAT, SOURCE, "r1")))
    assert (parsed.kv_request_id, parsed.peer_id, parsed.do_probe) == ("r1", "10.0.0.7:5710", True)
