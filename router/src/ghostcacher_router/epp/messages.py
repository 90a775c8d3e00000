"""What is read from a gateway's messages, and the answers to them: the protobuf side of the picker. No I/O.

Names are those of the endpoint picker protocol. Messages are typed as Any: their classes are made at run time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ghostcacher_router.epp import protocol as pb

SERVICE = f"{pb.PACKAGE}.ExternalProcessor"

NAMESPACE = "envoy.lb"
DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET = "x-gateway-destination-endpoint-subset"
PREFILLER = "x-prefiller-host-port"
"""How llm-d names the server that computes the prompt; the sidecar of the one that answers reads it."""

SUBSET_MAX = 8192
"""Endpoints of one subset that are read."""

NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX, GRPC = range(6)
"""How bodies are sent: `ProcessingMode.BodySendMode`."""

Headers = Sequence[tuple[str, bytes]]


def headers_of(message: Any) -> dict[bytes, bytes]:
    """Return the headers of an HttpHeaders message by lower-case name; of several with one name, joined by commas."""
    found: dict[bytes, bytes] = {}
    for header in message.headers.headers:
        name, value = header.key.lower().encode(), header.raw_value or header.value.encode()
        found[name] = b"%b,%b" % (found[name], value) if name in found else value
    return found


def body_modes(request: Any) -> tuple[int, int]:
    """Return how bodies of the request and of the response are sent: as the first message says.

    One that does not say so comes from a gateway older than that field, or that is no Envoy: then as the protocol asks.
    """
    if not request.HasField("protocol_config"):
        return FULL_DUPLEX, FULL_DUPLEX
    return request.protocol_config.request_body_mode, request.protocol_config.response_body_mode


def subset_of(request: Any) -> frozenset[str] | None:
    """Return the endpoints to which the gateway limits a pick, as `ip:port` or `ip`; None where it does not."""
    fields = _fields(request, SUBSET_NAMESPACE)
    if fields is None or SUBSET not in fields:
        return None
    value = fields[SUBSET]
    texts = (
        [value.string_value] if value.HasField("string_value") else [v.string_value for v in value.list_value.values]
    )
    named = (part.strip() for text in texts[:SUBSET_MAX] for part in text.split(","))
    return frozenset(name for name in named if name)


def served_by(request: Any) -> str | None:
    """Return which endpoint has answered, as `ip:port`; None where the gateway does not say it."""
    fields = _fields(request, NAMESPACE)
    return None if fields is None or SERVED not in fields else fields[SERVED].string_value or None


def _fields(request: Any, namespace: str) -> Any:
    metadata = request.metadata_context.filter_metadata
    return metadata[namespace].fields if namespace in metadata else None


# Answers


def request_headers(headers: Headers = (), *, destination: str | None = None, removed: Iterable[str] = ()) -> Any:
    """Return the answer to a request's headers. destination: where the request goes, if this says so."""
    answer = pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=_common(headers, destination, removed)))
    return _with_destination(answer, destination)


def request_body(headers: Headers = (), *, destination: str | None = None, removed: Iterable[str] = ()) -> Any:
    """Return the answer to a request's body that came as a whole, and goes on as it is."""
    answer = pb.ProcessingResponse(request_body=pb.BodyResponse(response=_common(headers, destination, removed)))
    return _with_destination(answer, destination)


def response_headers(headers: Headers = ()) -> Any:
    return pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=_common(headers, None, ())))


def streamed_request(body: bytes, *, end: bool) -> Any:
    """Return a piece of a request's body as it goes on."""
    return pb.ProcessingResponse(request_body=_streamed(body, end))


def streamed_response(body: bytes, *, end: bool) -> Any:
    """Return a piece of a response's body as it goes on."""
    return pb.ProcessingResponse(response_body=_streamed(body, end))


def response_body() -> Any:
    """Return the answer to a piece of a response's body that goes on as it is."""
    return pb.ProcessingResponse(response_body=pb.BodyResponse())


def request_trailers() -> Any:
    return pb.ProcessingResponse(request_trailers=pb.TrailersResponse())


def response_trailers() -> Any:
    return pb.ProcessingResponse(response_trailers=pb.TrailersResponse())


def immediate(status: int, headers: Headers, body: bytes, details: str) -> Any:
    """Return an answer for the client, instead of a worker's."""
    answer = pb.ImmediateResponse(body=body, details=details, headers=pb.HeaderMutation(set_headers=_set(headers)))
    answer.status.code = status
    return pb.ProcessingResponse(immediate_response=answer)


def _common(headers: Headers, destination: str | None, removed: Iterable[str]) -> Any:
    if destination is not None:
        headers = [(DESTINATION, destination.encode()), *headers]
    mutation = pb.HeaderMutation(set_headers=_set(headers), remove_headers=removed)
    return pb.CommonResponse(header_mutation=mutation, clear_route_cache=destination is not None)


def _set(headers: Headers) -> list[Any]:
    return [
        pb.HeaderValueOption(
            header=pb.HeaderValue(key=key, raw_value=value), append_action=pb.OVERWRITE_IF_EXISTS_OR_ADD
        )
        for key, value in headers
    ]


def _with_destination(answer: Any, destination: str | None) -> Any:
    if destination is not None:
        inner = answer.dynamic_metadata.fields[NAMESPACE].struct_value
        inner.fields[DESTINATION].string_value = destination
    return answer


def _streamed(body: bytes, end: bool) -> Any:
    piece = pb.StreamedBodyResponse(body=body, end_of_stream=end)
    return pb.BodyResponse(response=pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=piece)))
