"""Answers to gateways are what Envoy's published messages say, byte by byte of their fields."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs the extra [epp]")
pytest.importorskip("tests.support.envoy_protos")

from envoy.config.core.v3 import base_pb2 as core
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from ghostcacher_router.epp import messages

DESTINATION = "10.0.0.1:8000,[fd00::1]:8000"
HEADERS = [("x-request-id", b"a" * 300), ("x-gc-worker", b"\xff w"), ("empty", b"")]


def mutation(headers: list[tuple[str, bytes]], removed: list[str] | None = None) -> Any:
    action = core.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    options = [
        core.HeaderValueOption(header=core.HeaderValue(key=key, raw_value=value), append_action=action)
        for key, value in headers
    ]
    return pb.HeaderMutation(set_headers=options, remove_headers=removed)


def common(headers: list[tuple[str, bytes]], removed: list[str], destination: str | None) -> Any:
    own = [] if destination is None else [("x-gateway-destination-endpoint", destination.encode())]
    return pb.CommonResponse(
        header_mutation=mutation([*own, *headers], removed), clear_route_cache=destination is not None
    )


def read(answer: bytes) -> Any:
    """Return an answer as Envoy reads it; nothing in it may be unknown to it."""
    found = pb.ProcessingResponse.FromString(answer)
    again = pb.ProcessingResponse.FromString(answer)
    again.DiscardUnknownFields()
    assert again.SerializeToString(deterministic=True) == found.SerializeToString(deterministic=True)
    return found


@pytest.mark.parametrize("destination", [None, DESTINATION, "1" * 20_000])
@pytest.mark.parametrize("headers", [[], HEADERS])
@pytest.mark.parametrize("removed", [[], ["x-prefiller-host-port", "b"]])
def test_answers_with_headers(destination: str | None, headers: list[tuple[str, bytes]], removed: list[str]) -> None:
    """Of a request's headers or its body: header and metadata name the same destination."""
    said = common(headers, removed, destination)
    expected = (
        pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=said)),
        pb.ProcessingResponse(request_body=pb.BodyResponse(response=said)),
    )
    for wanted, make in zip(expected, (messages.request_headers, messages.request_body), strict=True):
        if destination is not None:
            wanted.dynamic_metadata.update({"envoy.lb": {"x-gateway-destination-endpoint": destination}})
        assert read(make(headers, destination=destination, removed=removed)) == wanted
    answer = pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=common(headers, [], None)))
    assert read(messages.response_headers(headers)) == answer


def test_headers_of_each_length() -> None:
    """Where a length no longer takes one byte, within one message or around it."""
    headers = [(f"x-{size}", b"v" * size) for size in range(90, 140)]
    assert read(messages.response_headers(headers)).response_headers.response.header_mutation == mutation(headers)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 62_000, 3_000_000])
@pytest.mark.parametrize("end", [False, True])
def test_pieces_of_bodies(size: int, end: bool) -> None:
    """Of any length, at which numbers take another byte."""
    body = bytes(range(256)) * (size // 256 + 1)
    piece = pb.StreamedBodyResponse(body=body[:size], end_of_stream=end)
    said = pb.BodyResponse(response=pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=piece)))
    assert read(messages.streamed_request(body[:size], end=end)) == pb.ProcessingResponse(request_body=said)
    assert read(messages.streamed_response(body[:size], end=end)) == pb.ProcessingResponse(response_body=said)


def test_answers_that_say_nothing() -> None:
    """Each of its kind, so that Envoy goes on."""
    kinds = {
        "response_body": messages.response_body(),
        "request_trailers": messages.request_trailers(),
        "response_trailers": messages.response_trailers(),
    }
    for kind, answer in kinds.items():
        found = read(answer)
        assert found.WhichOneof("response") == kind
        assert not getattr(found, kind).ListFields()


@pytest.mark.parametrize("status", [429, 503])
def test_answers_for_clients(status: int) -> None:
    found = read(messages.immediate(status, HEADERS, b"{}" * 100, "no_worker")).immediate_response
    assert (found.status.code, found.body, found.details) == (status, b"{}" * 100, "no_worker")
    assert found.headers == mutation(HEADERS)
